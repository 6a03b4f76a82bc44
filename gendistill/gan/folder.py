"""A GAN's folder: `gan.json`, which says what it is, and a folder with safetensors for each network."""

from __future__ import annotations

import dataclasses
import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from safetensors.torch import load_file, save_file
from torch import nn

from gendistill.gan.generator import Generator, GeneratorSpec

FILE_NAME = "gan.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' name, so that `from_pretrained` opens the built-in networks


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


@dataclass(frozen=True)
class Gan:
    """A GAN that was opened.

    Attributes:
        generator_source, discriminator_source: how their networks are built again; None where only a program is there.
        student: of a student what it was made of and how, as its folder says it; None of a teacher.
    """

    generator: Generator
    generator_source: NetworkSource | None = None
    discriminator: nn.Module | None = None
    discriminator_source: NetworkSource | None = None
    student: dict[str, Any] | None = None


def is_gan_folder(folder: str | Path) -> bool:
    return (Path(folder) / FILE_NAME).is_file()


def save_gan(folder: Path, gan: Gan) -> None:
    """Write `gan.json`, `generator/` and, where there is one, `discriminator/`."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"generator": gan.generator.network, "discriminator": gan.discriminator}
    for name, network in parts.items():
        if network is not None:
            _save_network(folder / name, network)
    described = {
        "format_version": 1,
        **dataclasses.asdict(gan.generator.spec),
        "generator": gan.generator_source and dataclasses.asdict(gan.generator_source),
        "discriminator": gan.discriminator_source and dataclasses.asdict(gan.discriminator_source),
        "student": gan.student,
    }
    (folder / FILE_NAME).write_text(json.dumps(described, indent=1) + "\n")


def open_gan(folder: str | Path) -> Gan:
    """The GAN of a folder that `save_gan` wrote, in float32.

    Raises:
        ValueError: it is no such folder, or a class cannot be imported.
    """
    described = json.loads((Path(folder) / FILE_NAME).read_text())
    fields = {f.name for f in dataclasses.fields(GeneratorSpec)}
    spec = GeneratorSpec(**{k: tuple(v) if isinstance(v, list) else v for k, v in described.items() if k in fields})
    sources = {name: NetworkSource(**described[name]) if described[name] else None for name in ("generator", "discriminator")}
    networks = {name: source and _open_network(Path(folder) / name, source) for name, source in sources.items()}
    generator = Generator(networks["generator"], spec)
    return Gan(generator, sources["generator"], networks["discriminator"], sources["discriminator"], described.get("student"))


def _save_network(folder: Path, network: nn.Module) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(network, ModelMixin):
        network.save_config(folder)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}, folder / WEIGHTS)


def _open_network(folder: Path, source: NetworkSource) -> nn.Module:
    module, _, name = source.class_path.partition(":")
    network: nn.Module = getattr(importlib.import_module(module), name)(**source.arguments)
    network.load_state_dict(
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    )
    return network.eval()
