"""One protocol, one result: a figure never travels without what it takes to compare it with another."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gendistill.metrics.clip_score import ClipScorer
from gendistill.metrics.features import FeatureExtractor, extract, metric_name
from gendistill.metrics.fidelity import feature_cosine, psnr
from gendistill.metrics.frechet import GaussianStatistics, frechet_distance, gaussian_statistics


@dataclass(frozen=True)
class Protocol:
    """How an evaluation was made."""

    metric: str  # `fid`, `fd-emoji`
    extractor: str
    weights_hash: str  # of the extractor
    resize: str
    num_samples: int
    reference: str  # the set of real pictures, in words
    reference_count: int | None
    seed: int
    prompts: str  # where the prompts come from, in words
    guidance_scale: float
    num_inference_steps: int
    versions: dict[str, str]  # package: version
    clip_model: str | None = None
    clip_weights_hash: str | None = None
    eta: float = 0.0  # share of fresh noise in a step
    timesteps: list[int] | None = None  # where they are not those that the sampler has by itself


@dataclass(frozen=True)
class Evaluation:
    """A model's scores under a protocol."""

    model: str
    sampler: str
    network_calls: int  # a picture, guidance counted as two
    scores: dict[str, float]
    seconds_per_picture: float
    protocol: Protocol

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Evaluation":
        """What `to_json` wrote.

        Raises:
            ValueError: not JSON, or a field is missing or unknown.
        """
        fields = _checked(cls, json.loads(text))
        return cls(**{**fields, "protocol": Protocol(**_checked(Protocol, fields["protocol"]))})


def _checked(kind: type, fields: Any) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise ValueError(f"{kind.__name__}: got {type(fields).__name__}, takes a JSON object.")
    declared = dataclasses.fields(kind)
    required = {f.name for f in declared if f.default is dataclasses.MISSING}
    wrong = (required - fields.keys()) | (fields.keys() - {f.name for f in declared})
    if wrong:
        raise ValueError(f"{kind.__name__}: missing or unknown fields {sorted(wrong)}.")
    return fields


# What must agree; seeds, steps and guidance may differ: these are what one compares.
MUST_AGREE = (
    "metric",
    "extractor",
    "weights_hash",
    "resize",
    "num_samples",
    "reference",
    "reference_count",
    "prompts",
    "clip_model",
    "clip_weights_hash",
)


def comparable(a: Evaluation, b: Evaluation) -> None:
    """Return if the scores of the two may stand in one table.

    Raises:
        ValueError: their protocols differ in one of `MUST_AGREE`.
    """
    for field in MUST_AGREE:
        of_a, of_b = getattr(a.protocol, field), getattr(b.protocol, field)
        if of_a != of_b:
            raise ValueError(f"{a.model} and {b.model} cannot be compared: {field} is {of_a!r} for one and {of_b!r}.")


def evaluate_images(
    images: torch.Tensor,
    prompts: Sequence[str] | None,
    reference: GaussianStatistics,
    extractor: FeatureExtractor,
    scorer: ClipScorer | None = None,
) -> dict[str, float]:
    """Scores of `images` uint8 (N, 3, H, W): the Fréchet distance to `reference` under its metric's name (lower is
    better) and, given a scorer and N prompts, the mean `clip_score` in [0, 100] (higher is better).

    Raises:
        ValueError: pictures of another kind; a scorer without prompts; `reference` is of another extractor.
    """
    if scorer is not None and prompts is None:
        raise ValueError("prompts: got none, the CLIP score takes one a picture.")
    statistics = gaussian_statistics(extract(extractor, images))
    scores = {metric_name(extractor): frechet_distance(statistics, reference)}
    if scorer is not None and prompts is not None:
        scores["clip_score"] = scorer.score(images, prompts).mean().item()
    return scores


def fidelity(images: torch.Tensor, of_teacher: torch.Tensor, extractor: FeatureExtractor) -> dict[str, float]:
    """How near pictures are to the teacher's of the same prompts and seeds, both uint8 (N, 3, H, W).

    `psnr` in dB, the mean of the pictures' own; `feature_cosine` in [-1, 1], the mean over pairs. Higher is nearer.
    """
    cosine = feature_cosine(extract(extractor, images), extract(extractor, of_teacher))
    return {"psnr": psnr(images, of_teacher).clamp(max=100).mean().item(), "feature_cosine": cosine.mean().item()}


def gap_closed(student_fd: float, free_fd: float, teacher_fd: float) -> float:
    """(F_free - F_student) / (F_free - F_teacher): the part of the way from free to teacher that distillation went.

    `free_fd` is the Fréchet distance that costs no training: the teacher at the student's number of network calls with
    the best sampler; `teacher_fd` is the teacher's at full length. 1: as good as the teacher, 0: no better than free,
    negative: worse than free, above 1: better than the teacher.

    Raises:
        ValueError: the two are equal: there is no gap.
    """
    if free_fd == teacher_fd:
        raise ValueError(f"free_fd, teacher_fd: got {free_fd} twice, takes two different distances.")
    return (free_fd - student_fd) / (free_fd - teacher_fd)
