"""Networks that take turns on a device: those that do not work wait in the host's memory, or on the disk, for a CPU's.

Layer by layer it is accelerate's offloading, which `enable_sequential_cpu_offload` of a diffusers pipeline is made of. Network
by network it is a hook of our own, for what the hooks of `enable_model_cpu_offload` do not do: free memory on a CPU; offload
nothing but the text encoders where that is enough; offload a VAE that has encoded an image before the network works; and leave
in place what the next call of the pipeline starts with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_submodules
from accelerate.utils import OffloadedWeightsLoader, offload_state_dict, release_memory
from torch import nn

from gendistill.samplers.families import family_of
from gendistill.samplers.offload.memory_model import Placement

GROUPS = {"text_encoder": "text", "image_encoder": "text", "controlnet": "network", "vae": "decoder"}  # by a name's beginning


def networks_of(pipeline: Any) -> dict[str, nn.Module]:
    """The networks of a pipeline that an image needs, by component."""
    part = family_of(pipeline).network_part
    components = pipeline.components.items()
    return {
        name: of for name, of in components if isinstance(of, nn.Module) and (name == part or name.startswith(tuple(GROUPS)))
    }


class Home:
    """Where networks are while they have no place on the device: in the host's memory, for a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def bring(self, name: str, network: nn.Module) -> None:
        """To the device; costs nothing where it is there."""
        network.to(self.device)

    def put_away(self, name: str, network: nn.Module) -> None:
        """From the device; costs nothing where it is at home."""
        network.to("cpu")

    def bring_layers(self, name: str, network: nn.Module) -> None:
        """From now on each layer comes to the device when it works, and leaves it again; accelerate does it."""
        self.put_away(name, network)
        cpu_offload(network, self.device, offload_buffers=bool(network._parameters))


class Disk(Home):
    """Of the networks of a CPU: a temporary folder, in accelerate's format, that is gone with its owner."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._folder = TemporaryDirectory(prefix="gendistill-")

    def bring(self, name: str, network: nn.Module) -> None:
        if _is_away(network):
            kept: Mapping[str, torch.Tensor] = OffloadedWeightsLoader(save_folder=str(self._kept(name)))
            network.load_state_dict({key: kept[key] for key in kept}, assign=True)

    def put_away(self, name: str, network: nn.Module) -> None:
        if not _is_away(network):
            if not self._kept(name).exists():
                offload_state_dict(str(self._kept(name)), network.state_dict())
            _forget(network)

    def bring_layers(self, name: str, network: nn.Module) -> None:
        self.put_away(name, network)
        disk_offload(network, str(self._kept(name)), self.device, offload_buffers=bool(network._parameters))

    def _kept(self, name: str) -> Path:
        return Path(self._folder.name) / name


def _is_away(network: nn.Module) -> bool:
    return next(network.parameters()).is_meta


def _forget(network: nn.Module) -> None:
    """Let go of all that the state dict of a network has; what it lacks nobody could bring back."""
    for module in network.modules():
        for name, weights in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(weights.to("meta"), weights.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                setattr(module, name, buffer.to("meta"))


class _Turn(ModelHook):
    """Asks for a place before a network works."""

    def __init__(self, placing: Placing, name: str) -> None:
        self.placing, self.name = placing, name
        self.execution_device = placing.home.device  # where diffusers makes what it calls the network with

    def pre_forward(self, module: nn.Module, *args: Any, **given: Any) -> tuple[Any, Any]:
        self.placing.turn_to(self.name)
        return args, given


class Placing:
    """The networks of a pipeline, and who of them has a place on the device.

    Args:
        pipeline: whose networks are all in the host's memory.
        device: on which they work.
    """

    def __init__(self, pipeline: Any, device: str | torch.device) -> None:
        device = torch.device(device)
        self.pipeline = pipeline
        self.home = Disk(device) if device.type == "cpu" else Home(device)
        self.networks = networks_of(pipeline)
        self.placement: Placement | None = None

    def take(self, placement: Placement) -> None:
        """Keep the networks as `placement` says from now on; what it was before is undone."""
        self.placement = placement
        vae = self.pipeline.vae
        for on, off in ((vae.enable_tiling, vae.disable_tiling), (vae.enable_slicing, vae.disable_slicing)):
            on() if placement.tiled else off()
        for name, network in self.networks.items():
            self._seat(name, network)
        release_memory()

    def add(self, name: str, network: nn.Module) -> None:
        """A network that comes with what is to be sampled: a ControlNet."""
        if self.networks.get(name) is not network:
            self.networks[name] = network
            self._seat(name, network)

    def turn_to(self, name: str) -> None:
        """Bring a network and those that stay beside it; the others leave first."""
        together = {other for other in self.networks if self._beside(name, other)}
        for other in self.networks.keys() - together:
            self.home.put_away(other, self.networks[other])
        for other in together:
            self.home.bring(other, self.networks[other])

    def _seat(self, name: str, network: nn.Module) -> None:
        assert self.placement is not None
        remove_hook_from_submodules(network)
        if self.placement.sequential_offload:
            self.home.bring_layers(name, network)
        else:
            add_hook_to_module(network, _Turn(self, name))

    def _beside(self, name: str, other: str) -> bool:
        """Whether two networks are on the device together."""
        assert self.placement is not None
        groups = _group(name), _group(other)
        if groups[0] == groups[1]:
            return True
        return not (self.placement.model_offload or (self.placement.text_encoder_offload and "text" in groups))


def _group(component: str) -> str:
    return next((group for start, group in GROUPS.items() if component.startswith(start)), "network")
