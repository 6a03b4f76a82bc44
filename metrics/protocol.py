"""One protocol, one result: a figure never travels without what it takes to compare it with another."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gendistill.metrics.registry import higher_is_better


@dataclass(frozen=True)
class EvaluationProtocol:
    """How an evaluation was made; None where a thing has no meaning, such as the guidance of images found in a folder."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    metric: str  # `fid`, `fd-emoji`
    extractor: str
    weights_hash: str  # of the extractor
    resize: str
    num_samples: int
    reference: str  # the set of real images, in words
    reference_count: int | None
    seed: int | None
    prompts: str | None  # where the prompts come from, in words
    guidance_scale: float | None
    num_inference_steps: int | None
    versions: dict[str, str]  # package: version
    clip_model: str | None = None
    clip_weights_hash: str | None = None
    eta: float = 0.0  # share of fresh noise in a step
    timesteps: list[int] | None = None  # where they are not those that the sampler has by itself
    reference_hash: str | None = None  # of the reference's contents

    def describe(self) -> str:
        """All of it in a sentence, for people."""
        clip = f"; CLIP by {self.clip_model} ({self.clip_weights_hash})" if self.clip_model else ""
        prompts = f", {self.prompts}, seed {self.seed}" if self.prompts else ""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.metric}: features of {self.extractor} ({self.weights_hash}), images {self.resize}; {self.num_samples} "
            f"images{prompts}; reference {self.reference} ({self.reference_count} images){clip}; {versions}"
        )


@dataclass(frozen=True)
class Evaluation:
    """A model's scores under a protocol; of images that were found and not sampled, no sampler and no calls.

    Attributes:
        scores: by name.
        intervals: (low, high) of scores, at 95 %.
        costs: what an image takes: `latency_seconds`, `peak_bytes`, `flops`, ...
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model: str
    sampler: str
    network_calls: int  # an image, guidance counted as two
    scores: dict[str, float]
    seconds_per_image: float | None
    protocol: EvaluationProtocol
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Of what was sampled."""
        assert self.protocol.num_inference_steps is not None
        return self.protocol.num_inference_steps

    @property
    def guidance_scale(self) -> float:
        """Of what was sampled."""
        assert self.protocol.guidance_scale is not None
        return self.protocol.guidance_scale

    @property
    def label(self) -> str:
        """The model and its steps, in words: `tiny-sd, 4 steps`."""
        steps = self.protocol.num_inference_steps
        return self.model if steps is None else f"{self.model}, {steps} step{'s' if steps != 1 else ''}"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Evaluation":
        """What `to_json` wrote.

        Raises:
            ValueError: not JSON, or a field is missing or unknown.
        """
        return TypeAdapter(cls).validate_python(json.loads(text))

    def table(self) -> Table:
        """For the terminal: a line a score, with its interval."""
        table = Table(title=self.label, title_justify="left", box=SIMPLE_HEAD)
        for name, justify in (("metric", "left"), ("", "left"), ("score", "right"), ("95 % interval", "right")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for name, score in self.scores.items():
            interval = "{:.4g} to {:.4g}".format(*self.intervals[name]) if name in self.intervals else ""
            table.add_row(name, "higher is better" if higher_is_better(name) else "lower is better", f"{score:.4g}", interval)
        return table

    def differences(self, other: "Evaluation") -> dict[str, float]:
        """Score by score, this one's minus the other's.

        Raises:
            ValueError: their protocols differ in one of `MUST_AGREE`.
        """
        comparable(self, other)
        return {name: score - other.scores[name] for name, score in self.scores.items() if name in other.scores}


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
        ValueError: their protocols differ in one of `MUST_AGREE`, or their references have other contents.
    """
    contents = a.protocol.reference_hash and b.protocol.reference_hash  # older results have none
    for name in (*MUST_AGREE, "reference_hash") if contents else MUST_AGREE:
        of_a, of_b = getattr(a.protocol, name), getattr(b.protocol, name)
        if of_a != of_b:
            raise ValueError(f"{a.model} and {b.model} cannot be compared: {name} is {of_a!r} for one and {of_b!r}.")


def gap_closed(student_fd: float, free_fd: float, teacher_fd: float) -> float:
    """(F_free - F_student) / (F_free - F_teacher): the part of the way from free to teacher that distillation went.

    `free_fd` is the Fréchet distance that costs no training: the teacher at the student's number of network calls with
    the best sampler; `teacher_fd` is the teacher's at full length. 1: as good as the teacher, 0: no better than free,
    negative: worse than free, above 1: better than the teacher.

    Raises:
        ValueError: the two are equal: there is no gap.
    """
    if free_fd == teacher_fd:
        raise ValueError(f"free_fd, teacher_fd: got {free_fd} twice, expects two different distances.")
    return (free_fd - student_fd) / (free_fd - teacher_fd)
