"""GAN folders: `gan.json`, which describes the GAN, and a folder with safetensors for each network."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.configuration_utils import ConfigMixin
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from gendistill.assets import asset_path
from gendistill.gan.generator import Generator, GeneratorSpec
from gendistill.networks.classes import NotImportable, build, error_summary, read_json
from gendistill.networks.pruning.pruned_architecture import apply
from gendistill.networks.state_dicts import load_weights, read_state_dict
from gendistill.runtime.files import honour_umask
from gendistill.samplers.teacher_path import found_path, relative_path

logger = logging.getLogger(__name__)

FILE_NAME = "gan.json"
FORMAT_VERSION = 1
WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' name, so that `from_pretrained` opens the built-in networks
LARGEST_INPUT = 2**26  # values per sample; a larger number is a mistake or malicious


@dataclass(frozen=True)
class NetworkSource:
    """How to rebuild a network: its class, the constructor's arguments, and the shapes of pruned layers.

    Attributes:
        class_path: `module:Class`; the module must be importable where the network is opened.
        layers: of a pruned network, see `pruned_architecture.record`; empty for other networks.
    """

    class_path: str
    arguments: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        return self.class_path.rpartition(":")[2]


@dataclass(frozen=True)
class Gan:
    """A GAN and how to rebuild it.

    Attributes:
        generator_source, discriminator_source: how to rebuild the networks.
        student: the provenance of a student, from its folder; None for a teacher.
    """

    generator: Generator
    generator_source: NetworkSource
    discriminator: nn.Module | None = None
    discriminator_source: NetworkSource | None = None
    student: dict[str, Any] | None = None


Kind = TypeVar("Kind", GeneratorSpec, NetworkSource)


def is_gan_folder(folder: str | Path) -> bool:
    """Whether a folder holds a GAN in gendistill's format."""
    return os.path.isfile(Path(asset_path(folder)) / FILE_NAME)  # also where the folder cannot be read


def save_gan(folder: Path, gan: Gan, dtype: torch.dtype = torch.float32) -> None:
    """Write `gan.json`, `generator/` and, if the GAN has one, `discriminator/`.

    Args:
        dtype: of the weights on disk, float32 or float16; they are opened in float32.

    Raises:
        ValueError: the discriminator has no source.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "generator": (gan.generator.network, gan.generator_source),
        "discriminator": (gan.discriminator, gan.discriminator_source),
    }
    for name, (network, source) in parts.items():
        if network is not None and source is None:
            raise ValueError(f"{folder}: the {name} cannot be saved without a source (its class and arguments)")
        if network is not None:
            _save_network(folder / name, network, dtype)
    description = {
        "format_version": FORMAT_VERSION,
        **dataclasses.asdict(gan.generator.spec),
        "generator": dataclasses.asdict(gan.generator_source),
        "discriminator": gan.discriminator_source and dataclasses.asdict(gan.discriminator_source),
        "student": gan.student and _with_relative_paths(gan.student, folder),
    }
    (folder / FILE_NAME).write_text(json.dumps(description, indent=1) + "\n")
    honour_umask(folder)


def open_gan(folder: str | Path, device: str | torch.device = "cpu") -> Gan:
    """Open the GAN of a folder written by `save_gan`, in float32 and eval mode.

    A discriminator whose class is not importable is omitted, with a warning.

    Raises:
        ValueError: the folder is not a GAN folder or incomplete, or the generator's class is not importable.
    """
    folder = Path(asset_path(folder))
    description = _read(folder)
    spec = _spec(folder, description)
    source = _typed(NetworkSource, description.get("generator"), f"{folder / FILE_NAME}: generator")
    generator = Generator(_open_network(folder, "generator", source).to(device), spec)
    _verify(folder, generator, device)
    gan = Gan(generator, source, student=description.get("student"))
    if description.get("discriminator") is None:
        return gan
    source = _typed(NetworkSource, description["discriminator"], f"{folder / FILE_NAME}: discriminator")
    try:
        discriminator = _open_network(folder, "discriminator", source).to(device)
    except NotImportable as error:
        logger.warning("%s; the discriminator is not opened", error)
        return gan
    return dataclasses.replace(gan, discriminator=discriminator, discriminator_source=source)


def _read(folder: Path) -> dict[str, Any]:
    if not is_gan_folder(folder):
        raise ValueError(f"{folder}: is not a GAN folder; expects a folder with {FILE_NAME}")
    description = read_json(folder / FILE_NAME, "GAN")
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{folder / FILE_NAME}: format_version {version!r}: expects {FORMAT_VERSION}; was it written by a newer gendistill?"
        )
    if not isinstance(student := description.get("student"), dict | None):
        raise ValueError(f"{folder / FILE_NAME}: student: expects a mapping or null")
    return description | {"student": student and _with_found_paths(student, folder)}


def _paths_of(student: dict[str, Any]) -> dict[str, str]:
    """The paths that the description of a student has, by the name of their setting."""
    generator = student.get("generator")
    found = {name: student.get(name) for name in ("teacher", "teacher_config")}
    found["weights"] = generator.get("weights") if isinstance(generator, dict) else None
    return {name: path for name, path in found.items() if isinstance(path, str)}


def _with_relative_paths(student: dict[str, Any], folder: Path) -> dict[str, Any]:
    found = {name: relative_path(path, folder) for name, path in _paths_of(student).items()}
    relative = {name: path for name, path in found.items() if path is not None}
    return student | ({"relative": relative} if relative else {})


def _with_found_paths(student: dict[str, Any], folder: Path) -> dict[str, Any]:
    stored = student.get("relative")
    relative = stored if isinstance(stored, dict) else {}
    found = {name: found_path(path, relative.get(name), folder) for name, path in _paths_of(student).items()}
    weights = {"generator": student["generator"] | {"weights": found.pop("weights")}} if "weights" in found else {}
    return student | found | weights


def _spec(folder: Path, description: dict[str, Any]) -> GeneratorSpec:
    spec = _typed(GeneratorSpec, description, f"{folder / FILE_NAME}")
    shapes = {"input_shape": spec.input_shape, "output_shape": spec.output_shape}
    for name, shape in shapes.items():
        if not shape or min(shape) < 1 or math.prod(shape) > LARGEST_INPUT:
            raise ValueError(
                f"{folder / FILE_NAME}: {name} {list(shape)}: expects sizes of at least 1 and at most {LARGEST_INPUT} values"
            )
    if spec.kind == "image" and len(spec.input_shape) != 3:
        raise ValueError(f"{folder / FILE_NAME}: input_shape {list(spec.input_shape)}: expects [C, h, w] where kind is image")
    if spec.num_classes < 0 or len(spec.classes) not in (0, spec.num_classes):
        raise ValueError(f"{folder / FILE_NAME}: num_classes {spec.num_classes}: expects the number of classes, or 0")
    low, high = spec.output_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{folder / FILE_NAME}: output_range {[low, high]}: expects two numbers such as [-1, 1]")
    return spec


def _typed(kind: type[Kind], content: Any, where: str) -> Kind:
    """A JSON object as a dataclass; unknown keys are ignored."""
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expects a mapping")
    known = {entry.name for entry in dataclasses.fields(kind)}
    try:
        return TypeAdapter(kind).validate_python({name: value for name, value in content.items() if name in known})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        got = "missing" if first["type"] == "missing" else repr(first["input"])[:80]
        raise ValueError(
            f"{where}: {key} is {got}; {error_summary(ValueError(first['msg'])).removeprefix('ValueError: ')}"
        ) from error


def _verify(folder: Path, generator: Generator, device: str | torch.device) -> None:
    """Run the generator once, to check that its inputs and outputs match `gan.json`."""
    try:
        with torch.no_grad():
            images = generator(*(tensor.to(device) for tensor in generator.example()))
    except Exception as error:  # a foreign network may raise anything
        raise ValueError(f"{folder}: the generator fails with the inputs of {FILE_NAME}: {error_summary(error)}") from error
    shape, expected = list(images.shape[1:]), list(generator.spec.output_shape)
    if shape != expected:
        raise ValueError(f"{folder}: the generator outputs images {shape}; {FILE_NAME} has {expected}")


def _save_network(folder: Path, network: nn.Module, dtype: torch.dtype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = network.state_dict()
    if isinstance(network, ConfigMixin):
        network.save_config(folder)
    # clones, as safetensors rejects tensors that share memory
    save_file({name: _as_saved(tensor, dtype).clone() for name, tensor in state.items()}, folder / WEIGHTS)


def _as_saved(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`, or unchanged where a value overflows: a variance of 100,000 is too large for float16."""
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return tensor
    saved = tensor.to(dtype)
    return saved if torch.isfinite(saved).all() else tensor


def round_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Round weights and buffers in place, as saving them in `dtype` does."""
    state: dict[str, Tensor] = network.state_dict()
    for tensor in state.values():
        tensor.copy_(_as_saved(tensor, dtype))


def _open_network(folder: Path, name: str, source: NetworkSource) -> nn.Module:
    """The network built by its class, with the recorded pruned shapes and the weights of the folder."""
    network = build(source.class_path, source.arguments, f"{folder / FILE_NAME}: {name}")
    if source.layers:
        network = apply(network, source.layers)
    weights = folder / name / WEIGHTS
    load_weights(network, read_state_dict(weights, f"{name} of {folder}:", part=name), str(weights))
    return network.eval()
