"""A GAN's folder: `gan.json`, which says what it is, and a folder with safetensors for each network."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
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
from gendistill.networks.classes import NotImportable, build, in_a_line, read_json
from gendistill.networks.pruning.pruned_architecture import apply
from gendistill.networks.state_dicts import load_weights, read_state_dict

logger = logging.getLogger(__name__)

FILE_NAME = "gan.json"
FORMAT_VERSION = 1
WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' name, so that `from_pretrained` opens the built-in networks
LARGEST_INPUT = 2**26  # numbers of one sample; more is a mistake, or meant to fill the memory


@dataclass(frozen=True)
class NetworkSource:
    """How a network is built again: its class, its arguments, and what was changed in it since.

    Attributes:
        class_path: `module:Class`; the module has to be importable where the network is opened.
        layers: of a pruned network, see `slim.record`; empty where the class and its arguments say all.
    """

    class_path: str
    arguments: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        return self.class_path.rpartition(":")[2]


@dataclass(frozen=True)
class Gan:
    """A GAN that was opened.

    Attributes:
        generator_source, discriminator_source: how their networks are built again.
        student: of a student what it was made of and how, as its folder says it; None of a teacher.
    """

    generator: Generator
    generator_source: NetworkSource
    discriminator: nn.Module | None = None
    discriminator_source: NetworkSource | None = None
    student: dict[str, Any] | None = None


Kind = TypeVar("Kind", GeneratorSpec, NetworkSource)


def is_gan_folder(folder: str | Path) -> bool:
    return (Path(asset_path(folder)) / FILE_NAME).is_file()


def save_gan(folder: Path, gan: Gan, dtype: torch.dtype = torch.float32) -> None:
    """Write `gan.json`, `generator/` and, where there is one, `discriminator/`.

    Args:
        dtype: of the weights on the disk, float32 or float16; they open in float32.

    Raises:
        ValueError: nothing says how the discriminator is built again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "generator": (gan.generator.network, gan.generator_source),
        "discriminator": (gan.discriminator, gan.discriminator_source),
    }
    for name, (network, source) in parts.items():
        if network is not None and source is None:
            raise ValueError(f"{folder}: the {name} cannot be saved, nothing says how it is built again")
        if network is not None:
            _save_network(folder / name, network, dtype)
    described = {
        "format_version": FORMAT_VERSION,
        **dataclasses.asdict(gan.generator.spec),
        "generator": dataclasses.asdict(gan.generator_source),
        "discriminator": gan.discriminator_source and dataclasses.asdict(gan.discriminator_source),
        "student": gan.student,
    }
    (folder / FILE_NAME).write_text(json.dumps(described, indent=1) + "\n")


def open_gan(folder: str | Path, device: str | torch.device = "cpu") -> Gan:
    """The GAN of a folder that `save_gan` wrote, in float32, ready to evaluate.

    A discriminator whose class is not importable is left out, with a warning in the log.

    Raises:
        ValueError: it is no such folder, or not whole, or the generator's class is not importable.
    """
    folder = Path(asset_path(folder))
    described = _read(folder)
    spec = _spec(folder, described)
    source = _typed(NetworkSource, described.get("generator"), f"{folder / FILE_NAME}: generator")
    generator = Generator(_open_network(folder, "generator", source).to(device), spec)
    _verify(folder, generator, device)
    gan = Gan(generator, source, student=described.get("student"))
    if described.get("discriminator") is None:
        return gan
    source = _typed(NetworkSource, described["discriminator"], f"{folder / FILE_NAME}: discriminator")
    try:
        discriminator = _open_network(folder, "discriminator", source).to(device)
    except NotImportable as error:
        logger.warning("%s; the discriminator is left out", error)
        return gan
    return dataclasses.replace(gan, discriminator=discriminator, discriminator_source=source)


def _read(folder: Path) -> dict[str, Any]:
    if not is_gan_folder(folder):
        raise ValueError(f"{folder}: is no GAN folder; expects one with {FILE_NAME}")
    described = read_json(folder / FILE_NAME, "GAN")
    version = described.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{folder / FILE_NAME}: format_version {version!r}: expects {FORMAT_VERSION}; a later gendistill wrote it?"
        )
    if not isinstance(described.get("student"), dict | None):
        raise ValueError(f"{folder / FILE_NAME}: student: expects a mapping or null")
    return described


def _spec(folder: Path, described: dict[str, Any]) -> GeneratorSpec:
    spec = _typed(GeneratorSpec, described, f"{folder / FILE_NAME}")
    shapes = {"input_shape": spec.input_shape, "output_shape": spec.output_shape}
    for name, shape in shapes.items():
        if not shape or min(shape) < 1 or math.prod(shape) > LARGEST_INPUT:
            raise ValueError(
                f"{folder / FILE_NAME}: {name} {list(shape)}: expects sizes of at least 1, an image's worth in all"
            )
    if spec.kind == "image" and len(spec.input_shape) != 3:
        raise ValueError(f"{folder / FILE_NAME}: input_shape {list(spec.input_shape)}: expects [C, h, w] where kind is image")
    if spec.num_classes < 0 or len(spec.classes) not in (0, spec.num_classes):
        raise ValueError(f"{folder / FILE_NAME}: num_classes {spec.num_classes}: expects as many as there are classes, or 0")
    low, high = spec.output_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{folder / FILE_NAME}: output_range {[low, high]}: expects two numbers such as [-1, 1]")
    return spec


def _typed(kind: type[Kind], held: Any, where: str) -> Kind:
    """`held` as a dataclass; keys that it does not know are left out."""
    if not isinstance(held, dict):
        raise ValueError(f"{where}: expects a mapping")
    known = {f.name for f in dataclasses.fields(kind)}
    try:
        return TypeAdapter(kind).validate_python({name: value for name, value in held.items() if name in known})
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        got = "missing" if first["type"] == "missing" else repr(first["input"])[:80]
        raise ValueError(
            f"{where}: {at} is {got}; {in_a_line(ValueError(first['msg'])).removeprefix('ValueError: ')}"
        ) from error


def _verify(folder: Path, generator: Generator, device: str | torch.device) -> None:
    """Run it once: `gan.json` and the network must agree."""
    try:
        with torch.no_grad():
            images = generator(*(each.to(device) for each in generator.example()))
    except Exception as error:  # whatever a stranger's network raises
        raise ValueError(f"{folder}: the generator fails on what {FILE_NAME} says goes in: {in_a_line(error)}") from error
    gives, says = list(images.shape[1:]), list(generator.spec.output_shape)
    if gives != says:
        raise ValueError(f"{folder}: the generator gives images {gives} where {FILE_NAME} says {says}")


def _save_network(folder: Path, network: nn.Module, dtype: torch.dtype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = network.state_dict()
    if isinstance(network, ConfigMixin):
        network.save_config(folder)
    # clones, as safetensors takes no two names of one tensor
    save_file({name: _as_saved(tensor, dtype).clone() for name, tensor in state.items()}, folder / WEIGHTS)


def _as_saved(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In `dtype`, where its numbers fit into it: a variance of 100,000 does not fit into float16."""
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return tensor
    saved = tensor.to(dtype)
    return saved if torch.isfinite(saved).all() else tensor


def round_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """To what they will be when they come back from a file of `dtype`."""
    state: dict[str, Tensor] = network.state_dict()
    for tensor in state.values():
        tensor.copy_(_as_saved(tensor, dtype))


def _open_network(folder: Path, name: str, source: NetworkSource) -> nn.Module:
    """As the class builds it, pruned as it was, with the weights of the folder."""
    network = build(source.class_path, source.arguments, f"{folder / FILE_NAME}: {name}")
    if source.layers:
        network = apply(network, source.layers)
    weights = folder / name / WEIGHTS
    load_weights(network, read_state_dict(weights, f"{name} of {folder}:", part=name), str(weights))
    return network.eval()
