"""Everything that a GAN teacher can come as, opened as one thing."""

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

TAKES = "takes a GAN folder (gan.json), a saved network's folder, or module:Class"


def open_teacher(
    teacher: str,
    *,
    config: str | None = None,
    settings: GeneratorConfig | None = None,
    device: str | torch.device = "cpu",
) -> Gan:
    """The GAN that a teacher is, in float32, ready to evaluate; nothing of its files is run but tensor operations.

    What goes in and comes out is read from its folder or found, see `inspecting.find_spec`; settings win.

    Args:
        teacher: a GAN folder; a folder that diffusers saved of a built-in network; or `module:Class`, importable from the
            working directory or installed.
        config: JSON file with the constructor's arguments of a `module:Class`.

    Raises:
        ValueError: one sentence on what it is not, and what to do.
    """
    settings = settings or GeneratorConfig()
    path = Path(asset_path(teacher))
    if is_gan_folder(path):
        _no_other_weights(teacher, config, settings)
        gan = open_gan(path)
        gan = dataclasses.replace(gan, generator=_as_set(gan.generator, settings, teacher))
    elif path.is_dir():
        _no_other_weights(teacher, config, settings)
        network, source = _open_saved_network(path)
        spec = find_spec(network, source.arguments, settings, f"teacher {teacher}")
        gan = Gan(Generator(network, spec), source)
    elif path.is_file():
        refuse_program(path, "teacher")
        raise ValueError(
            f"teacher {teacher}: is a file of weights; expects module:Class as the teacher and --set generator.weights={teacher}"
        )
    elif is_class_path(teacher):
        gan = _open_class(teacher, config, settings)
    else:
        raise ValueError(f"teacher {teacher}: {TAKES}; there is no such file or folder")
    gan = _with_discriminator(gan, settings)
    gan.generator.network.to(device)
    if gan.discriminator is not None:
        gan.discriminator.to(device)
    return gan


def describe(gan: Gan) -> str:
    """One line: what it is, what goes in, what comes out, and what came with it."""
    spec = gan.generator.spec
    goes_in, comes_out = ("x".join(map(str, shape)) for shape in (spec.input_shape, spec.output_shape))
    classes = f" and {spec.num_classes} classes" if spec.num_classes else ""
    low, high = spec.output_range
    return (
        f"{gan.generator_source.class_name}: {spec.kind} {goes_in}{classes} to images {comes_out} in [{low:g}, {high:g}]; "
        f"{'with its discriminator' if gan.discriminator is not None else 'no discriminator'}"
    )


def _no_other_weights(teacher: str, config: str | None, settings: GeneratorConfig) -> None:
    if settings.weights is not None:
        raise ValueError(f"generator.weights {settings.weights}: is for a teacher module:Class; {teacher} has its own")
    if config is not None:
        raise ValueError(f"teacher_config {config}: is for a teacher module:Class; {teacher} has its own")


def _as_set(generator: Generator, settings: GeneratorConfig, teacher: str) -> Generator:
    """With the settings that were given in place of what its folder says, if it works with them."""
    given = {name: getattr(settings, name) for name in ("kind", "input_shape", "num_classes", "output_range")}
    if all(value is None for value in given.values()):
        return generator
    spec = generator.spec
    said: dict[str, Any] = dataclasses.asdict(spec)
    merged = {name: said[name] if value is None else value for name, value in given.items()}
    found = find_spec(generator.network, {}, GeneratorConfig(**{**merged, "input_shape": list(merged["input_shape"])}), teacher)
    classes = spec.classes if len(spec.classes) == found.num_classes else ()
    spec = dataclasses.replace(found, classes=classes)
    return Generator(generator.network, spec)


def _open_class(class_path: str, config: str | None, settings: GeneratorConfig) -> Gan:
    arguments = read_arguments(config, "teacher_config")
    network = build(class_path, arguments)
    _refuse_without_forward(network, f"teacher {class_path}")
    if settings.weights is None:
        logger.warning("generator.weights is not given: %s is used as its constructor makes it", class_path)
    else:
        load_weights(network, read_state_dict(settings.weights, "generator.weights"), f"generator.weights {settings.weights}")
    spec = find_spec(network, arguments, settings, f"teacher {class_path}")
    return Gan(Generator(network, spec), NetworkSource(class_path, arguments))


def _refuse_without_forward(network: nn.Module, name: str) -> None:
    if type(network).forward is nn.Module.forward:
        raise ValueError(f"{name}: has no forward")


def _open_saved_network(folder: Path, setting: str = "teacher") -> tuple[nn.Module, NetworkSource]:
    """A built-in network that diffusers saved alone."""
    if (folder / "model_index.json").is_file():
        raise ValueError(f"{setting} {folder}: is a diffusion pipeline; {TAKES}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{setting} {folder}: {TAKES}; the folder has neither gan.json nor config.json")
    said = read_json(folder / "config.json", setting)
    known = {**GENERATORS, **DISCRIMINATORS}
    name = said.get("_class_name")
    if name not in known:
        raise ValueError(
            f"{setting} {folder}: config.json names the class {name}, which is not built in ({', '.join(sorted(known))}); "
            f"takes module:Class with its weights"
        )
    made = known[name]
    takes = inspect.signature(made.__init__).parameters
    arguments = {name: value for name, value in said.items() if name in takes}
    source = NetworkSource(f"{made.__module__}:{made.__qualname__}", arguments)
    network = build(source.class_path, arguments, setting)
    load_weights(network, read_state_dict(folder / WEIGHTS, setting), f"{setting} {folder / WEIGHTS}")
    return network, source


def _with_discriminator(gan: Gan, settings: GeneratorConfig) -> Gan:
    """With the discriminator that the settings name, or with its own; tried on the generator's images."""
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
        raise ValueError(f"{setting} {discriminator}: expects generator.discriminator_weights too; `fresh` is one without any")
    weights = "generator.discriminator_weights"
    state = read_state_dict(settings.discriminator_weights, weights, part="discriminator")
    load_weights(network, state, f"{weights} {settings.discriminator_weights}")
    return network, NetworkSource(discriminator, arguments)
