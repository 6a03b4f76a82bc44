"""The pruning of a denoiser, found from its network: a U-Net or a diffusion transformer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor

from gendistill.networks.counting import macs
from gendistill.networks.pruning import transformer_pruning, unet_pruning
from gendistill.networks.pruning.unet_importance import example_inputs

Config = dict[str, Any]
Inputs = Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class PrunedDenoiser:
    """A student with the weights of its teacher.

    Attributes:
        ends: the teacher's block for each block of the student with comparable outputs, teacher to student; None where blocks
            are paired by the sizes of their feature maps.
    """

    network: Any
    ends: dict[str, str] | None = None


@dataclass(frozen=True)
class DenoiserPruning(ABC):
    """The pruning of one kind of networks.

    Attributes:
        network: the teacher's network, which may be on the meta device where only configs are computed.
        family_inputs: keyword arguments of the network of a config on the meta device, from the family.
    """

    network: Any
    family_inputs: Callable[[Mapping[str, Any]], Mapping[str, Any]]

    @abstractmethod
    def smaller_config(self, factor: float, blocks: bool) -> Config:
        """The student's config with 1 / `factor` of the multiply-accumulates; `blocks` removes blocks first."""

    @abstractmethod
    def fewer_blocks_config(self) -> Config:
        """The student's config with fewer blocks of the teacher's widths."""

    @abstractmethod
    def pruned(self, config: Mapping[str, Any], predict: Callable[[], Tensor]) -> PrunedDenoiser:
        """A student of a config; `predict` runs the teacher's network on data."""

    @abstractmethod
    def on_meta(self, config: Mapping[str, Any]) -> Any:
        """A network of a config without weights."""

    def inputs(self, config: Mapping[str, Any]) -> Inputs:
        """Arguments of `forward` on the meta device."""
        return self.family_inputs(config)

    def macs(self, config: Mapping[str, Any]) -> int:
        """Multiply-accumulates of a call for one sample."""
        return macs(self.on_meta(config), self.inputs(config))


class UNetPruning(DenoiserPruning):
    """Fewer channels and layers of a `UNet2DConditionModel`."""

    def smaller_config(self, factor: float, blocks: bool) -> Config:
        return unet_pruning.smaller_config(self.network.config, factor, blocks=blocks)

    def fewer_blocks_config(self) -> Config:
        return unet_pruning.fewer_blocks_config(self.network.config, mid=unet_pruning.max_layers(self.network.config) > 1)

    def pruned(self, config: Mapping[str, Any], predict: Callable[[], Tensor]) -> PrunedDenoiser:
        return PrunedDenoiser(unet_pruning.matching_config(self.network, config)[0])

    def on_meta(self, config: Mapping[str, Any]) -> Any:
        return unet_pruning.on_meta(config)

    def inputs(self, config: Mapping[str, Any]) -> Inputs:
        return example_inputs(config)


class TransformerPruning(DenoiserPruning):
    """Fewer blocks, and heads where the class allows it, of a diffusion transformer."""

    def smaller_config(self, factor: float, blocks: bool) -> Config:
        return transformer_pruning.smaller_config(self.network, factor, self.family_inputs)

    def fewer_blocks_config(self) -> Config:
        return transformer_pruning.fewer_blocks_config(self.network)

    def pruned(self, config: Mapping[str, Any], predict: Callable[[], Tensor]) -> PrunedDenoiser:
        student = transformer_pruning.matching_config(self.network, config, predict)
        return PrunedDenoiser(student.network, transformer_pruning.teacher_ends(self.network, student.kept))

    def on_meta(self, config: Mapping[str, Any]) -> Any:
        return transformer_pruning.on_meta(type(self.network), config)


def pruning_of(network: Any, family_inputs: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> DenoiserPruning | None:
    """The pruning for a network; None for a network of another kind."""
    unet: Any = UNet2DConditionModel  # diffusers does not annotate the config
    if isinstance(network, unet):
        return UNetPruning(network, family_inputs)
    return TransformerPruning(network, family_inputs) if transformer_pruning.stacks_of(network) else None
