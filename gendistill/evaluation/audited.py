"""What every audit of a student looks at: two models, their images of the same prompts and seeds, and the real images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from gendistill.data.samples import PictureSource
from gendistill.data.sources.source import open_source
from gendistill.evaluation.extraction import Extraction, as_tensor
from gendistill.evaluation.judge import Judge
from gendistill.evaluation.probes import Probes
from gendistill.evaluation.reference import read_pictures
from gendistill.metrics.distances.clip_score import clip_scores
from gendistill.metrics.metric import SampleFeatures
from gendistill.samplers import Sampler

if TYPE_CHECKING:
    from gendistill.metrics.audit.probe import LinearProbe


@dataclass(frozen=True)
class ModelImages:
    """A model as it is sampled from, and its images of the judge's prompts."""

    name: str
    sampler: Sampler
    steps: int
    guidance_scale: float
    pictures: SampleFeatures


@dataclass(frozen=True)
class AuditContext:
    """What does not depend on the student.

    Attributes:
        reference: the path of the judge's real images.
        amount: how many images to generate for each attribute and each kind of prompt.
        audits: the names in `AUDITS` that were asked for.
        fitted: probes that were fitted for an earlier student, by attribute.
    """

    judge: Judge
    reference: str
    probes: Probes
    amount: int
    audits: Sequence[str] = ()
    progress: Callable[[int], None] | None = None
    fitted: dict[str, LinearProbe] = field(default_factory=dict)

    def features_of(self, source: PictureSource) -> Tensor:
        """(N, D) of all images of a source."""
        extraction = Extraction(self.judge.extractor, None, self.judge.albums)
        return as_tensor(read_pictures(source, extraction, square=self.judge.square).reference.features)

    @cached_property
    def held_out(self) -> Tensor | None:
        """Features of real images that nobody trained on; None where `probes.yaml` names none."""
        unusual = self.probes.unusual
        if unusual is None or not unusual.with_pictures:
            return None
        return self.features_of(image_source(unusual.path, unusual.caption))


def image_source(path: str, caption: str | None) -> PictureSource:
    source = open_source(path, caption)
    assert isinstance(source, PictureSource)
    return source


def captions_of(source: PictureSource) -> list[str]:
    """Of all images, in their order; none is decoded."""
    return [source.choice.draw(entry.key, entry.texts) for entry in source.entries()]


def clip_scores_of(pictures: SampleFeatures) -> np.ndarray:
    """(N,) of images and their prompts."""
    return clip_scores(as_tensor(pictures.image_embeddings), as_tensor(pictures.text_embeddings)).numpy()
