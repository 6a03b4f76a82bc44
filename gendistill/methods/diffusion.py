"""What all methods for diffusion models share: a teacher, a student and its average, of which the student learns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from gendistill.config import DistillConfig
from gendistill.data.batches import Batch
from gendistill.data.order import PerSampleRandom
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.networks import GUIDANCE_EMBEDDING, Networks, full_networks, lora_networks
from gendistill.methods.alignment import Alignment
from gendistill.methods.base import Method, Update
from gendistill.weights import weight_at


class DiffusionMethod(Method):
    """A method that trains one denoiser by one loss.

    Attributes:
        beside: what the student is told of its teacher's ways beside that; None for nothing.
        with_student: optimizers of what learns by the student's loss, beside the student's own.
    """

    networks: Networks
    beside: Alignment | None = None
    with_student: tuple[str, ...] = ()

    @abstractmethod
    def loss_of(self, batch: Batch, random: PerSampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """The method's own loss of a batch, a scalar, and what it is made of, for the log."""

    def updates(self, batch: Batch, random: PerSampleRandom) -> Iterator[Update]:
        loss, terms = self.loss_of(batch, random)
        if self.beside is not None and (weight := weight_at(self.beside.config.weight, random.step)):
            aligned, beside = self.beside.loss(batch, random)
            terms = {**terms, "own": loss.detach(), "align": aligned.detach(), **beside}
            loss = loss + weight * aligned
        yield Update(loss, beside=self.with_student, logs={"loss": loss.detach(), **terms})

    def trained_modules(self) -> dict[str, nn.Module]:
        return {"student": self.networks.student.network}

    def replace_modules(self, wrapped: dict[str, nn.Module]) -> None:
        self.networks.student = self.networks.student.with_network(wrapped["student"])

    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        return {"student": self.networks.trained}


def first_networks(config: DistillConfig, teacher: Denoiser, start: Any = None) -> Networks:
    """Networks of the kind that `config` asks for: all weights, with or without a guidance scale as an input, or an adapter.

    Args:
        start: a network to initialise the student from in place of the teacher's; all weights only.
    """
    if config.lora.enabled:
        return lora_networks(teacher, config.lora.rank, config.lora.alpha)
    return full_networks(teacher, GUIDANCE_EMBEDDING if config.guidance.mode == "embedded" else None, start)
