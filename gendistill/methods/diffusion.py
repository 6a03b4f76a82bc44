"""A method with a loss of its own: what it and alignment say of a batch becomes one loss of the student."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from gendistill.data.batches import Batch
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.trained_networks import GUIDANCE_EMBEDDING, Networks, full_networks, lora_networks
from gendistill.methods.aligned import AlignedMethod
from gendistill.run.config import DistillConfig
from gendistill.runtime.random import PerSampleRandom
from gendistill.settings.schedule import weight_at
from gendistill.training.method import Update


class DiffusionMethod(AlignedMethod):
    """A method that trains one denoiser by one loss, beside which alignment may stand.

    Attributes:
        with_student: optimizers of what learns by the student's loss, beside the student's own.
    """

    with_student: tuple[str, ...] = ()

    @abstractmethod
    def loss_of(self, batch: Batch, random: PerSampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """The method's own loss of a batch, a scalar, and what it is made of, for the log."""

    def updates(self, batch: Batch, random: PerSampleRandom) -> Iterator[Update]:
        loss, terms = self.loss_of(batch, random)
        alignment = self.alignments.get("student")
        if alignment is not None and (weight := weight_at(alignment.config.weight, random.step)):
            ours = alignment.painted(batch, random)
            yield from alignment.updates(ours, batch, random)
            aligned, beside = alignment.loss(ours, batch, random)
            terms = {**terms, "own": loss.detach(), "align": aligned.detach(), **beside}
            loss = loss + weight * aligned
        yield Update(loss, beside=self.with_student, logs={"loss": loss.detach(), **terms})


def first_networks(config: DistillConfig, teacher: Denoiser, start: Any = None) -> Networks:
    """Networks of the kind that `config` asks for: all weights, with or without a guidance scale as an input, or an adapter.

    Args:
        start: a network to initialise the student from in place of the teacher's; all weights only.
    """
    if config.lora.enabled:
        return lora_networks(teacher, config.lora.rank, config.lora.alpha)
    return full_networks(teacher, GUIDANCE_EMBEDDING if config.guidance.mode == "embedded" else None, start)
