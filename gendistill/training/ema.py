"""The exponential moving average of what learns: what every method keeps, and what becomes the student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gendistill.training.sharding import whole


class MovingAverage:
    """Networks of which one learns and another follows.

    Attributes:
        trained, averaged: the parameters of both, by the same names in the same order.
        lora: the configuration of the adapter that is trained; None where all weights are.
    """

    trained: dict[str, nn.Parameter]
    averaged: dict[str, nn.Parameter]
    lora: Any = None
    shards = True  # whether FSDP may hold it in pieces

    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Buffers that training changes, such as those of batch norms: the learner's and the average's, by name."""
        return {}

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """average <- decay * average + (1 - decay) * student, running statistics too; counts are the newest."""
        torch._foreach_lerp_(list(self.averaged.values()), [whole(p) for p in self.trained.values()], 1 - decay)
        for newest, average in self.statistics().values():
            average.lerp_(newest, 1 - decay) if average.is_floating_point() else average.copy_(newest)

    def average_tensors(self) -> dict[str, Tensor]:
        """All that makes the average what it is, in place."""
        return {**self.averaged, **{name: average for name, (_, average) in self.statistics().items()}}

    def average_state(self) -> dict[str, Tensor]:
        return {name: tensor.detach() for name, tensor in self.average_tensors().items()}

    @torch.no_grad()
    def load_average(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.average_tensors().items():
            tensor.copy_(state[name])
