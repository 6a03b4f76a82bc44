"""Offloading of idle networks from a GPU to the host's memory, or from a CPU to the disk.

Sequential offload uses accelerate's offloading, as `enable_sequential_cpu_offload` of a diffusers pipeline does. Model offload
uses a hook of its own, as the hooks of `enable_model_cpu_offload` cannot free memory on a CPU, offload only the text
encoders, offload a VAE after it encoded an image and before the denoiser runs, or keep the network on the device with
which the next call of the pipeline starts.
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

GROUPS = {"text_encoder": "text", "image_encoder": "text", "controlnet": "network", "vae": "decoder"}  # by prefix of the name


def networks_of(pipeline: Any) -> dict[str, nn.Module]:
    """The networks of a pipeline that sampling uses, by component."""
    part = family_of(pipeline).network_part
    components = pipeline.components.items()
    return {
        name: component
        for name, component in components
        if isinstance(component, nn.Module) and (name == part or name.startswith(tuple(GROUPS)))
    }


class HostMemory:
    """Storage of a GPU's offloaded networks in the host's memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def load(self, name: str, network: nn.Module) -> None:
        """Move a network to the device, if it is not there."""
        network.to(self.device)

    def offload(self, name: str, network: nn.Module) -> None:
        """Move a network from the device, if it is there."""
        network.to("cpu")

    def offload_layers(self, name: str, network: nn.Module) -> None:
        """Load each layer only while it runs, from now on, by accelerate."""
        self.offload(name, network)
        cpu_offload(network, self.device, offload_buffers=bool(network._parameters))


class Disk(HostMemory):
    """Storage of a CPU's offloaded networks in a temporary folder, in accelerate's format, deleted with this object."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._folder = TemporaryDirectory(prefix="gendistill-")

    def load(self, name: str, network: nn.Module) -> None:
        if _is_offloaded(network):
            weights: Mapping[str, torch.Tensor] = OffloadedWeightsLoader(save_folder=str(self._folder_of(name)))
            network.load_state_dict({key: weights[key] for key in weights}, assign=True)
            if callable(tie_weights := getattr(network, "tie_weights", None)):
                tie_weights()

    def offload(self, name: str, network: nn.Module) -> None:
        if not _is_offloaded(network):
            if not self._folder_of(name).exists():
                offload_state_dict(str(self._folder_of(name)), network.state_dict())
            _free(network)

    def offload_layers(self, name: str, network: nn.Module) -> None:
        self.offload(name, network)
        disk_offload(network, str(self._folder_of(name)), self.device, offload_buffers=bool(network._parameters))

    def _folder_of(self, name: str) -> Path:
        return Path(self._folder.name) / name


def _is_offloaded(network: nn.Module) -> bool:
    return next(network.parameters()).is_meta


def _free(network: nn.Module) -> None:
    """Free all parameters of a network; its buffers are kept, as pipelines and accelerate read them between its calls."""
    for module in network.modules():
        for name, weights in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(weights.to("meta"), weights.requires_grad))


class _LoadingHook(ModelHook):
    """Loads a network before it runs."""

    def __init__(self, placing: Placing, name: str) -> None:
        self.placing, self.name = placing, name
        self.execution_device = placing.storage.device  # the device on which diffusers creates the network's inputs

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.placing.load(self.name)
        return args, kwargs


class Placing:
    """Applies placements to the networks of a pipeline.

    Args:
        pipeline: a pipeline with all networks in the host's memory.
        device: the device for sampling.
    """

    def __init__(self, pipeline: Any, device: str | torch.device) -> None:
        device = torch.device(device)
        self.pipeline = pipeline
        self.storage = Disk(device) if device.type == "cpu" else HostMemory(device)
        self.networks = networks_of(pipeline)
        self.placement: Placement | None = None

    def apply(self, placement: Placement) -> None:
        """Offload the networks according to `placement` from now on, in place of the previous placement."""
        self.placement = placement
        vae = self.pipeline.vae
        for enable, disable in ((vae.enable_tiling, vae.disable_tiling), (vae.enable_slicing, vae.disable_slicing)):
            enable() if placement.tiled else disable()
        for name, network in self.networks.items():
            self._add_hooks(name, network)
        release_memory()

    def add(self, name: str, network: nn.Module) -> None:
        """Add a network that a task needs: a ControlNet."""
        if self.networks.get(name) is not network:
            self.networks[name] = network
            self._add_hooks(name, network)

    def load(self, name: str) -> None:
        """Load a network and those that stay on the device together with it, after offloading the others."""
        together = {other for other in self.networks if self._together(name, other)}
        for other in self.networks.keys() - together:
            self.storage.offload(other, self.networks[other])
        for other in together:
            self.storage.load(other, self.networks[other])

    def _add_hooks(self, name: str, network: nn.Module) -> None:
        assert self.placement is not None
        remove_hook_from_submodules(network)
        if self.placement.sequential_offload:
            self.storage.offload_layers(name, network)
        else:
            add_hook_to_module(network, _LoadingHook(self, name))

    def _together(self, name: str, other: str) -> bool:
        """Whether two networks are on the device together."""
        assert self.placement is not None
        groups = _group(name), _group(other)
        if groups[0] == groups[1]:
            return True
        return not (self.placement.model_offload or (self.placement.text_encoder_offload and "text" in groups))


def _group(component: str) -> str:
    return next((group for start, group in GROUPS.items() if component.startswith(start)), "network")
