"""The exponential moving average of a trained network: every method keeps one, and it becomes the student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gendistill.training.sharding import whole


class MovingAverage:
    """A trained network, and another of the same structure that follows it.

    Attributes:
        trained, averaged: the parameters of both, by the same names in the same order.
        decay: the largest decay of the average; it is smaller in the first steps.
        lora: the configuration of the adapter that is trained; None where all weights are.
    """

    trained: dict[str, nn.Parameter]
    averaged: dict[str, nn.Parameter]
    decay: float = 0.999
    lora: Any = None
    shards = True  # whether FSDP may shard it

    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Buffers that training changes, such as those of batch norms: the trained network's and the average's, by name."""
        return {}

    def follow(self, step: int) -> None:
        """Update the average after optimizer step `step` (from 1).

        The decay min(decay, (1 + step) / (10 + step)) warms up, so that the average forgets its initial weights.
        """
        self.update_average(min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """average <- decay average + (1 - decay) trained, running statistics too; of integer buffers the newest."""
        torch._foreach_lerp_(list(self.averaged.values()), [whole(p) for p in self.trained.values()], 1 - decay)
        for newest, average in self.statistics().values():
            average.lerp_(newest, 1 - decay) if average.is_floating_point() else average.copy_(newest)

    def average_tensors(self) -> dict[str, Tensor]:
        """All tensors of the average, in place."""
        return {**self.averaged, **{name: average for name, (_, average) in self.statistics().items()}}

    def average_state(self) -> dict[str, Tensor]:
        """The same, detached."""
        return {name: tensor.detach() for name, tensor in self.average_tensors().items()}

    @torch.no_grad()
    def load_average(self, state: dict[str, Tensor]) -> None:
        """Copy `state` into the average."""
        for name, tensor in self.average_tensors().items():
            tensor.copy_(state[name])
