"""The inputs of every audit of a student: two models, their images of the same prompts and seeds, and the real images."""

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
    """A model with its step count and guidance scale, and the features of its images for the evaluator's prompts."""

    name: str
    sampler: Sampler
    steps: int
    guidance_scale: float
    images: SampleFeatures


@dataclass(frozen=True)
class AuditContext:
    """The inputs of audits that are shared by all students.

    Attributes:
        reference: path of the evaluator's real images.
        amount: number of images to generate for each attribute and each kind of prompt.
        audits: the requested names in `AUDITS`.
        fitted: probes that were fitted for an earlier student, by attribute.
        captioned: captions that were read earlier, by path and caption field.
    """

    evaluator: Evaluator
    reference: str
    probes: Probes
    amount: int
    audits: Sequence[str] = ()
    progress: Callable[[int], None] | None = None
    fitted: dict[str, LinearProbe] = field(default_factory=dict)
    captioned: dict[tuple[str, str | None], list[str]] = field(default_factory=dict)

    def captions(self, path: str, caption: str | None) -> list[str]:
        """Captions of all images of a source, which is read once."""
        if (path, caption) not in self.captioned:
            self.captioned[path, caption] = captions_of(image_source(path, caption))
        return self.captioned[path, caption]

    def features_of(self, source: ImageSource) -> Tensor:
        """Features (N, D) of all images of a source."""
        extraction = Extraction(self.evaluator.extractor, None, self.evaluator.image_caches)
        return as_tensor(read_images(source, extraction, square=self.evaluator.square).reference.features)

    @cached_property
    def held_out(self) -> Tensor | None:
        """Features of the held-out real images that `probes.yaml` names; None if it names none."""
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
    """Captions of all images, in their order, without decoding the images."""
    return [source.choice.sample(entry.key, entry.texts) for entry in source.entries()]


def clip_scores_of(images: SampleFeatures) -> np.ndarray:
    """CLIP scores (N,) of images and their prompts."""
    return clip_scores(as_tensor(images.image_embeddings), as_tensor(images.text_embeddings)).numpy()
