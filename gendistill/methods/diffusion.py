"""A method with a loss of its own: what it and alignment say of a batch becomes one loss of the student."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from torch import Tensor

from gendistill.data.batches import Batch
from gendistill.data.order import PerSampleRandom
from gendistill.methods.aligned import AlignedMethod
from gendistill.methods.base import Update
from gendistill.weights import weight_at


class DiffusionMethod(AlignedMethod):
    """A method that trains one denoiser by one loss, beside which alignment may stand."""

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
        yield Update(loss, logs={"loss": loss.detach(), **terms})
