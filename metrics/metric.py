"""The description of a metric: how it is computed, and how reports name and show it.

To add a metric, define a `Metric` in a new file and add a line to `gendistill.metrics.registry`, or call `register` of that
module from another package; `docs/extending.md` has a template.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from gendistill.metrics.distances.uncertainty import Interval
from gendistill.metrics.features.gaussian import GaussianStatistics
from gendistill.metrics.features.matrix import Features

Value = TypeVar("Value")


class Need(Enum):
    """An input of a metric in addition to the features of the generated images; the value is the error if it is missing."""

    REFERENCE = "there is no reference"
    REAL_FEATURES = "got saved statistics, from which only the Fréchet distance follows; expects a reference of images"
    PROMPTS = "got images without prompts; expects one per image"
    DIFFERENT_PROMPTS = "got only one prompt; expects at least two different ones"
    REPEATED_PROMPTS = "expects at least two prompts with two images each"
    CLIP = "got no CLIP embeddings of the images and their prompts; expects a prompt per image and a CLIP model"
    CLIP_REFERENCE = "got no CLIP embeddings of the images and of the reference"
    PAIRS = "got no pairs of images of a student and its teacher"
    PAIR_FEATURES = "got no features of both images of each pair"
    LPIPS = "got no weights of the LPIPS network"


@dataclass(frozen=True)
class SampleFeatures:
    """Generated images as features.

    Attributes:
        features: (N, D), from one extractor.
        prompts: the prompt of each image, N.
        image_embeddings, text_embeddings: CLIP embeddings (N, E) of the images and of their prompts, each of length 1.
    """

    features: Features
    prompts: Sequence[str] | None = None
    image_embeddings: Features | None = None
    text_embeddings: Features | None = None


@dataclass(frozen=True)
class ReferenceFeatures:
    """Real images: statistics, optionally features (M, D) and CLIP embeddings `image_embeddings` (M, E)."""

    statistics: GaussianStatistics
    features: Features | None = None
    image_embeddings: Features | None = None


@dataclass(frozen=True, eq=False)
class ImagePairs:
    """Images of a student and of its teacher from the same prompts and seeds.

    Attributes:
        images, teacher_images: uint8 (N, 3, H, W).
        features, teacher_features: (M, D), from these pairs or from more pairs.
        lpips: a network from `gendistill.metrics.pairs.perceptual`.

    Raises:
        ValueError: the images are not uint8, differ in shape or number, or N is 0.
    """

    images: Tensor
    teacher_images: Tensor
    features: Features | None = None
    teacher_features: Features | None = None
    lpips: nn.Module | None = None

    def __post_init__(self) -> None:
        for images in (self.images, self.teacher_images):
            if str(images.dtype) != "torch.uint8" or images.ndim != 4 or len(images) == 0:
                got = f"{images.dtype} {tuple(images.shape)}"
                raise ValueError(f"images: got {got}, expects torch.uint8 (N, 3, H, W), N at least 1.")
        if self.images.shape != self.teacher_images.shape:
            shapes = f"{tuple(self.images.shape)} and {tuple(self.teacher_images.shape)}"
            raise ValueError(f"images: got {shapes}, expects equal shapes.")


@dataclass(frozen=True, eq=False)
class MetricInputs:
    """All inputs of the metrics; a metric's `needs` list the inputs that it requires.

    Attributes:
        fd: the name of the Fréchet distance over these features: `fid`, `fd-emoji`.
        clip: the name of the CLIP model.
        seed: seed of the resampling.
    """

    samples: SampleFeatures | None = None
    reference: ReferenceFeatures | None = None
    pairs: ImagePairs | None = None
    fd: str = "fid"
    clip: str | None = None
    seed: int = 0
    _shared: dict[Callable[[MetricInputs], Any], Any] = field(default_factory=dict, repr=False)

    def once(self, function: Callable[[MetricInputs], Value]) -> Value:
        """`function(self)`, computed once for all metrics that share it."""
        if function not in self._shared:
            self._shared[function] = function(self)
        value: Value = self._shared[function]
        return value

    @property
    def features(self) -> Features:
        return _present(self.samples).features

    @property
    def prompts(self) -> Sequence[str]:
        return _present(_present(self.samples).prompts)

    @property
    def statistics(self) -> GaussianStatistics:
        return _present(self.reference).statistics

    @property
    def real_features(self) -> Features:
        return _present_features(_present(self.reference).features)

    @property
    def image_embeddings(self) -> Features:
        return _present_features(_present(self.samples).image_embeddings)

    @property
    def text_embeddings(self) -> Features:
        return _present_features(_present(self.samples).text_embeddings)

    @property
    def real_image_embeddings(self) -> Features:
        return _present_features(_present(self.reference).image_embeddings)

    @property
    def image_pairs(self) -> ImagePairs:
        return _present(self.pairs)

    @property
    def met(self) -> frozenset[Need]:
        """The needs that these inputs meet."""
        samples, reference, pairs = self.samples, self.reference, self.pairs
        embedded = samples is not None and samples.image_embeddings is not None
        met_by_inputs = {
            Need.REFERENCE: reference is not None,
            Need.REAL_FEATURES: reference is not None and reference.features is not None,
            Need.CLIP: embedded and samples is not None and samples.text_embeddings is not None,
            Need.CLIP_REFERENCE: embedded and reference is not None and reference.image_embeddings is not None,
            Need.PAIRS: pairs is not None,
            Need.PAIR_FEATURES: pairs is not None and pairs.features is not None and pairs.teacher_features is not None,
            Need.LPIPS: pairs is not None and pairs.lpips is not None,
        }
        met_by_prompts = needs_met_by(samples.prompts if samples else None)
        return met_by_prompts | {need for need, is_met in met_by_inputs.items() if is_met}


def needs_met_by(prompts: Sequence[str] | None) -> frozenset[Need]:
    """The needs that the prompts meet."""
    if prompts is None:
        return frozenset()
    counts = Counter(prompts)
    met = {
        Need.PROMPTS: True,
        Need.DIFFERENT_PROMPTS: len(counts) > 1,
        Need.REPEATED_PROMPTS: sum(count > 1 for count in counts.values()) > 1,
    }
    return frozenset(need for need, is_met in met.items() if is_met)


@dataclass(frozen=True)
class Metric:
    """A score of a set of generated images, or of pairs of images.

    Attributes:
        name: the name by which `--metrics` selects it.
        label: heading of its column in a report; by default the reported name.
        explanation: one sentence for the reader of a report.
        compute: computes the score, or one value per image, (N,), whose mean is the score.
        needs: its required inputs.
        interval: computes the 95 % interval of the score; None: the bootstrap interval of the mean if `compute` returns values
            per image, otherwise no interval.
        interval_at_infinity: whether the interval is for infinitely many images, and need not contain the score.
        min_samples, min_edge: minimum number of images, and minimum edge of an image in pixels.
        default: the evaluations that compute it by default: `quick` (every evaluation), `full`, or `on request` (none).
        in_summary: whether short tables show it by default.
        digits, scale: its format: `scale` times the score, with `digits` digits after the point.
        aliases: other names that select it; several metrics may have one alias, which selects them all.
        stems: first part of the reported name: with FID's own network, and with any other.
        named_after: the network whose name is the second part of the reported name.
        ending: last part of the reported name.
    """

    name: str
    explanation: str
    compute: Callable[[MetricInputs], float | NDArray[np.float64]]
    higher_is_better: bool
    needs: frozenset[Need] = frozenset()
    interval: Callable[[MetricInputs], Interval] | None = None
    interval_at_infinity: bool = False
    label: str = ""
    min_samples: int = 2
    min_edge: int = 0
    default: Literal["quick", "full", "on request"] = "on request"
    in_summary: bool = True
    digits: int = 2
    scale: float = 1.0
    aliases: tuple[str, ...] = ()
    stems: tuple[str, ...] = ()
    named_after: Literal["extractor", "clip", "lpips"] | None = None
    ending: str = ""

    @property
    def of_pairs(self) -> bool:
        """Whether the metric compares pairs of images, instead of two sets of images."""
        return Need.PAIRS in self.needs

    def lacks(self, met: frozenset[Need], count: int, edge: int | None = None, real: Features | None = None) -> str | None:
        """Why the metric cannot be computed from `count` images of `edge` pixels, in one sentence; None if it can.

        Args:
            real: features of the reference's images, whose number must suffice too if the metric needs them.
        """
        if missing := next((need for need in Need if need in self.needs - met), None):
            return f"{self.name}: {missing.value}."
        if count < self.min_samples:
            return f"{self.name}: got {count} images, expects at least {self.min_samples}."
        if real is not None and Need.REAL_FEATURES in self.needs and len(real) < self.min_samples:
            return f"{self.name}: got {len(real)} images of the reference, expects at least {self.min_samples}."
        if edge is not None and edge < self.min_edge:
            return f"{self.name}: got images of {edge} pixels, expects at least {self.min_edge}x{self.min_edge}."
        return None

    def reported_name(self, inputs: MetricInputs) -> str:
        """The name under which the score is reported, different for each network: `fid`, `fd-emoji`, `cmmd-tiny-clip`."""
        if self.named_after == "clip":
            return f"{self.stems[0]}-{inputs.clip}{self.ending}"
        if self.named_after == "lpips":
            return str(inputs.image_pairs.lpips.name)  # type: ignore[union-attr]
        if self.named_after == "extractor":
            stem = self.stems[0] if inputs.fd.startswith("fid") else self.stems[-1]
            return stem + inputs.fd.removeprefix("fid").removeprefix("fd") + self.ending
        return self.name

    def reports(self, name: str) -> bool:
        """Whether `name` is a reported name of this metric."""
        return name == self.name or (name.split("-")[0] in self.stems and name.endswith(self.ending))


def _present(value: Value | None) -> Value:
    """The value; LookupError if it is None: the metric reads an input that its `needs` do not list."""
    if value is None:
        raise LookupError("the metric reads an input that its `needs` do not list.")
    return value


def _present_features(features: Features | None) -> Features:
    return features if features is not None else _present(features)
