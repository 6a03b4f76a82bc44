"""Open GAN teachers from GAN folders, saved networks and user-defined classes."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gendistill.assets import asset_path
from gendistill.gan.architectures import DISCRIMINATORS, GENERATORS
from gendistill.gan.discriminator import adapt
from gendistill.gan.gan_folder import WEIGHTS, Gan, NetworkSource, is_gan_folder, open_gan
from gendistill.gan.generator import Generator
from gendistill.gan.generator_config import GeneratorConfig
from gendistill.gan.inspecting import find_spec
from gendistill.networks.classes import build, is_class_path, read_arguments, read_json
from gendistill.networks.state_dicts import load_weights, read_state_dict, refuse_program

logger = logging.getLogger(__name__)

EXPECTS = "expects a GAN folder (gan.json), a saved network's folder, or module:Class"


def open_teacher(
    teacher: str,
    *,
    config: str | None = None,
    settings: GeneratorConfig | None = None,
    device: str | torch.device = "cpu",
) -> Gan:
    """Open a GAN teacher, in float32 and eval mode; files are read without executing code in them.

    The input and output shapes are read from the folder or inferred, see `inspecting.find_spec`; settings take precedence.

    Args:
        teacher: a GAN folder; a folder with a built-in network saved by diffusers; or `module:Class`, importable from the
            working directory or installed.
        config: JSON file with the constructor's arguments of a `module:Class`.

    Raises:
        ValueError: the teacher cannot be opened.
    """
    settings = settings or GeneratorConfig()
    path = Path(asset_path(teacher))
    if is_gan_folder(path):
        _no_other_weights(teacher, config, settings)
        gan = open_gan(path)
        gan = dataclasses.replace(gan, generator=_with_settings(gan.generator, settings, teacher))
    elif path.is_dir():
        _no_other_weights(teacher, config, settings)
        network, source = _open_saved_network(path)
        spec = find_spec(network, source.arguments, settings, f"teacher {teacher}")
        gan = Gan(Generator(network, spec), source)
    elif path.is_file():
        refuse_program(path, "teacher")
        raise ValueError(
            f"teacher {teacher}: is a file of weights; expects module:Class as the teacher and "
            f"--set generator.weights={teacher}"
        )
    elif is_class_path(teacher):
        gan = _open_class(teacher, config, settings)
    else:
        raise ValueError(f"teacher {teacher}: {EXPECTS}; there is no such file or folder")
    gan = _with_discriminator(gan, settings)
    gan.generator.network.to(device)
    if gan.discriminator is not None:
        gan.discriminator.to(device)
    return gan


def describe(gan: Gan) -> str:
    """One line with the class, the inputs and the outputs of the generator, and whether there is a discriminator."""
    spec = gan.generator.spec
    input_size, output_size = ("x".join(map(str, shape)) for shape in (spec.input_shape, spec.output_shape))
    classes = f" and {spec.num_classes} classes" if spec.num_classes else ""
    low, high = spec.output_range
    return (
        f"{gan.generator_source.class_name}: {spec.kind} {input_size}{classes} to images {output_size} in [{low:g}, {high:g}]; "
        f"{'with its discriminator' if gan.discriminator is not None else 'no discriminator'}"
    )


def _no_other_weights(teacher: str, config: str | None, settings: GeneratorConfig) -> None:
    if settings.weights is not None:
        raise ValueError(f"generator.weights {settings.weights}: is for a teacher module:Class; {teacher} has its own")
    if config is not None:
        raise ValueError(f"teacher_config {config}: is for a teacher module:Class; {teacher} has its own")


def _with_settings(generator: Generator, settings: GeneratorConfig, teacher: str) -> Generator:
    """The generator with the settings instead of the values of its folder, verified by running it."""
    values = {name: getattr(settings, name) for name in ("kind", "input_shape", "num_classes", "output_range")}
    if all(value is None for value in values.values()):
        return generator
    spec = generator.spec
    saved: dict[str, Any] = dataclasses.asdict(spec)
    merged = {name: saved[name] if value is None else value for name, value in values.items()}
    config = GeneratorConfig(**{**merged, "input_shape": list(merged["input_shape"])})
    verified = find_spec(generator.network, {}, config, teacher)
    classes = spec.classes if len(spec.classes) == verified.num_classes else ()
    return Generator(generator.network, dataclasses.replace(verified, classes=classes))


def _open_class(class_path: str, config: str | None, settings: GeneratorConfig) -> Gan:
    arguments = read_arguments(config, "teacher_config")
    network = build(class_path, arguments)
    _refuse_without_forward(network, f"teacher {class_path}")
    if settings.weights is None:
        logger.warning("generator.weights is not set: %s has the weights of its constructor", class_path)
    else:
        load_weights(network, read_state_dict(settings.weights, "generator.weights"), f"generator.weights {settings.weights}")
    spec = find_spec(network, arguments, settings, f"teacher {class_path}")
    return Gan(Generator(network, spec), NetworkSource(class_path, arguments))


def _refuse_without_forward(network: nn.Module, name: str) -> None:
    if type(network).forward is nn.Module.forward:
        raise ValueError(f"{name}: has no forward")


def _open_saved_network(folder: Path, setting: str = "teacher") -> tuple[nn.Module, NetworkSource]:
    """A built-in network saved by diffusers' `save_pretrained`."""
    if (folder / "model_index.json").is_file():
        raise ValueError(f"{setting} {folder}: is a diffusion pipeline; {EXPECTS}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{setting} {folder}: {EXPECTS}; the folder has neither gan.json nor config.json")
    config = read_json(folder / "config.json", setting)
    known = {**GENERATORS, **DISCRIMINATORS}
    name = config.get("_class_name")
    if name not in known:
        raise ValueError(
            f"{setting} {folder}: config.json names the class {name}, which is not built in ({', '.join(sorted(known))}); "
            f"expects module:Class with its weights"
        )
    cls = known[name]
    parameters = inspect.signature(cls.__init__).parameters
    arguments = {key: value for key, value in config.items() if key in parameters}
    source = NetworkSource(f"{cls.__module__}:{cls.__qualname__}", arguments)
    network = build(source.class_path, arguments, setting)
    load_weights(network, read_state_dict(folder / WEIGHTS, setting), f"{setting} {folder / WEIGHTS}")
    return network, source


def _with_discriminator(gan: Gan, settings: GeneratorConfig) -> Gan:
    """The GAN with the discriminator of the settings, or with its own, verified on the generator's images."""
    name, source = "the discriminator of the folder", gan.discriminator_source
    network = gan.discriminator
    if settings.discriminator is not None:
        name = f"generator.discriminator {settings.discriminator}"
        network, source = _open_discriminator(settings.discriminator, settings)
    if network is not None:
        adapt(network, gan.generator.spec, name)
    return dataclasses.replace(gan, discriminator=network, discriminator_source=source)


def _open_discriminator(discriminator: str, settings: GeneratorConfig) -> tuple[nn.Module | None, NetworkSource | None]:
    setting, path = "generator.discriminator", Path(asset_path(discriminator))
    if not is_class_path(discriminator):
        for name in ("discriminator_weights", "discriminator_config"):
            if getattr(settings, name) is not None:
                raise ValueError(f"generator.{name} {getattr(settings, name)}: is for a discriminator module:Class")
    if discriminator == "fresh":
        return None, None
    if is_gan_folder(path):
        gan = open_gan(path)
        if gan.discriminator is None:
            raise ValueError(f"{setting} {path}: the folder has no discriminator")
        return gan.discriminator, gan.discriminator_source
    if path.is_dir():
        return _open_saved_network(path, setting)
    if not is_class_path(discriminator):
        raise ValueError(f"{setting} {discriminator}: expects module:Class, a folder, or fresh; there is no such folder")
    arguments = read_arguments(settings.discriminator_config, "generator.discriminator_config")
    network = build(discriminator, arguments, setting)
    _refuse_without_forward(network, f"{setting} {discriminator}")
    if settings.discriminator_weights is None:
        raise ValueError(f"{setting} {discriminator}: expects generator.discriminator_weights too, or `fresh` for a new one")
    weights = "generator.discriminator_weights"
    state = read_state_dict(settings.discriminator_weights, weights, part="discriminator")
    load_weights(network, state, f"{weights} {settings.discriminator_weights}")
    return network, NetworkSource(discriminator, arguments)
