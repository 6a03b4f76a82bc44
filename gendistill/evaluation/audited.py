"""What every audit of a student looks at: two models, their images of the same prompts and seeds, and the real images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from gendistill.data.samples import ImageSource
from gendistill.data.sources.source import open_source
from gendistill.evaluation.evaluator import Evaluator
from gendistill.evaluation.extraction import Extraction, as_tensor
from gendistill.evaluation.probes import Probes
from gendistill.evaluation.reference import read_images
from gendistill.metrics.distances.clip_score import clip_scores
from gendistill.metrics.metric import SampleFeatures
from gendistill.samplers import Sampler

if TYPE_CHECKING:
    from gendistill.metrics.audit.probe import LinearProbe


@dataclass(frozen=True)
class ModelImages:
    """A model as it is sampled from, and its images of the evaluator's prompts."""

    name: str
    sampler: Sampler
    steps: int
    guidance_scale: float
    images: SampleFeatures


@dataclass(frozen=True)
class AuditContext:
    """What does not depend on the student.

    Attributes:
        reference: the path of the evaluator's real images.
        amount: how many images to generate for each attribute and each kind of prompt.
        audits: the names in `AUDITS` that were asked for.
        fitted: probes that were fitted for an earlier student, by attribute.
    """

    evaluator: Evaluator
    reference: str
    probes: Probes
    amount: int
    audits: Sequence[str] = ()
    progress: Callable[[int], None] | None = None
    fitted: dict[str, LinearProbe] = field(default_factory=dict)

    def features_of(self, source: ImageSource) -> Tensor:
        """(N, D) of all images of a source."""
        extraction = Extraction(self.evaluator.extractor, None, self.evaluator.image_caches)
        return as_tensor(read_images(source, extraction, square=self.evaluator.square).reference.features)

    @cached_property
    def held_out(self) -> Tensor | None:
        """Features of real images that nobody trained on; None where `probes.yaml` names none."""
        unusual = self.probes.unusual
        if unusual is None or not unusual.with_images:
            return None
        return self.features_of(image_source(unusual.path, unusual.caption))


def image_source(path: str, caption: str | None) -> ImageSource:
    """The images of a reference, opened."""
    source = open_source(path, caption)
    assert isinstance(source, ImageSource)
    return source


def captions_of(source: ImageSource) -> list[str]:
    """Of all images, in their order; none is decoded."""
    return [source.choice.sample(entry.key, entry.texts) for entry in source.entries()]


def clip_scores_of(images: SampleFeatures) -> np.ndarray:
    """(N,) of images and their prompts."""
    return clip_scores(as_tensor(images.image_embeddings), as_tensor(images.text_embeddings)).numpy()
