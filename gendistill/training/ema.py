"""The exponential moving average (EMA) of a trained network, which every method keeps and which becomes the student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gendistill.training.sharding import full_tensor


class MovingAverage:
    """A trained network and its EMA, a network of the same structure.

    Attributes:
        trained, averaged: the parameters of the network and of its EMA, by the same names in the same order.
        decay: the decay of the EMA after its warm-up.
        lora: the configuration of the trained adapter; None where all weights are trained.
    """

    trained: dict[str, nn.Parameter]
    averaged: dict[str, nn.Parameter]
    decay: float = 0.999
    lora: Any = None
    shards = True  # whether FSDP may shard the trained network

    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Buffers that training changes, such as running statistics of batch norms, by name: (trained network's, EMA's)."""
        return {}

    def follow(self, step: int) -> None:
        """Update the EMA after optimizer step `step` (from 1).

        The decay warms up, so that the EMA forgets the initial weights.
        """
        self.update_average(self.decay_at(step))

    def decay_at(self, step: int) -> float:
        """The decay after optimizer step `step` (from 1)."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """average <- decay average + (1 - decay) trained, for parameters and running statistics; integer buffers are copied."""
        torch._foreach_lerp_(list(self.averaged.values()), [full_tensor(p) for p in self.trained.values()], 1 - decay)
        for trained, average in self.statistics().values():
            average.lerp_(trained, 1 - decay) if average.is_floating_point() else average.copy_(trained)

    def average_tensors(self) -> dict[str, Tensor]:
        """All tensors of the EMA by name, not copied."""
        return {**self.averaged, **{name: average for name, (_, average) in self.statistics().items()}}

    def average_state(self) -> dict[str, Tensor]:
        """All tensors of the EMA by name, detached."""
        return {name: tensor.detach() for name, tensor in self.average_tensors().items()}

    @torch.no_grad()
    def load_average(self, state: dict[str, Tensor]) -> None:
        """Copy `state` into the EMA."""
        for name, tensor in self.average_tensors().items():
            tensor.copy_(state[name])
