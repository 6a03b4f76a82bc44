"""The result of an evaluation and the protocol under which it was measured, so that two results can be compared."""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import AliasChoices, ConfigDict, Field, TypeAdapter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gendistill.metrics.registry import higher_is_better


@dataclass(frozen=True)
class EvaluationProtocol:
    """How an evaluation was made; a field that does not apply, such as the guidance scale of a folder of images, is None."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    metric: str  # `fid`, `fd-emoji`
    extractor: str
    weights_hash: str  # of the extractor's weights
    resize: str
    num_samples: int
    reference: str  # name of the set of real images
    reference_count: int | None
    seed: int | None
    prompts: str | None  # source of the prompts
    guidance_scale: float | None
    num_inference_steps: int | None
    versions: dict[str, str]  # package: version
    clip_model: str | None = None
    clip_weights_hash: str | None = None
    eta: float = 0.0  # fraction of fresh noise in a step
    timesteps: list[int] | None = None  # None: the sampler's default timesteps
    reference_hash: str | None = None  # hash of the reference's contents
    dtype: str | None = None  # precision of the model that was sampled

    def describe(self) -> str:
        """The protocol as one sentence."""
        clip = f"; CLIP by {self.clip_model} ({self.clip_weights_hash})" if self.clip_model else ""
        prompts = f", {self.prompts}, seed {self.seed}" if self.prompts else ""
        prompts += f", in {self.dtype}" if self.dtype not in (None, "float32") else ""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.metric}: features of {self.extractor} ({self.weights_hash}), images {self.resize}; {self.num_samples} "
            f"images{prompts}; reference {self.reference} ({self.reference_count} images){clip}; {versions}"
        )


@dataclass(frozen=True)
class Evaluation:
    """A model's scores under a protocol; for images read from a folder, `sampler` is empty and `network_calls` is 0.

    Attributes:
        scores: by name of the metric.
        intervals: 95 % interval (low, high) of a score, by name.
        costs: costs of one image: `latency_seconds`, `peak_bytes`, `flops`, ...
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model: str
    sampler: str
    network_calls: int  # network evaluations per image; a guided step counts as two
    scores: dict[str, float]
    # Older files name this field `seconds_per_picture`.
    seconds_per_image: Annotated[float | None, Field(validation_alias=AliasChoices("seconds_per_image", "seconds_per_picture"))]
    protocol: EvaluationProtocol
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """The step count of a sampled model."""
        assert self.protocol.num_inference_steps is not None
        return self.protocol.num_inference_steps

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of a sampled model."""
        assert self.protocol.guidance_scale is not None
        return self.protocol.guidance_scale

    @property
    def label(self) -> str:
        """The model and its step count: `tiny-sd, 4 steps`."""
        steps = self.protocol.num_inference_steps
        return self.model if steps is None else f"{self.model}, {steps} step{'s' if steps != 1 else ''}"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Evaluation":
        """The evaluation that `to_json` wrote.

        Raises:
            ValueError: the text is not JSON, or a field is missing or unknown.
        """
        older = r"(?<=\d) (?:drawn|sampled) by frequency"  # words: allowed, of older files
        text = re.sub(older, " prompts sampled by frequency", text)
        return TypeAdapter(cls).validate_python(json.loads(text))

    def table(self) -> Table:
        """A table for the terminal: one row per score, with its interval."""
        table = Table(title=self.label, title_justify="left", box=SIMPLE_HEAD)
        for name, justify in (("metric", "left"), ("", "left"), ("score", "right"), ("95 % interval", "right")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for name, score in self.scores.items():
            interval = "{:.4g} to {:.4g}".format(*self.intervals[name]) if name in self.intervals else ""
            table.add_row(name, "higher is better" if higher_is_better(name) else "lower is better", f"{score:.4g}", interval)
        return table

    def differences(self, other: "Evaluation") -> dict[str, float]:
        """This evaluation's scores minus the other's, by name.

        Raises:
            ValueError: the protocols differ in one of `MUST_AGREE`.
        """
        comparable(self, other)
        return {name: score - other.scores[name] for name, score in self.scores.items() if name in other.scores}


# The fields in which two protocols must agree; seeds, step counts and guidance scales may differ, as these are compared.
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
    """Check that the scores of two evaluations may stand in one table.

    Raises:
        ValueError: the protocols differ in one of `MUST_AGREE`, or the references have different contents.
    """
    both_hashed = a.protocol.reference_hash and b.protocol.reference_hash  # older results have no hash
    for name in (*MUST_AGREE, "reference_hash") if both_hashed else MUST_AGREE:
        value_a, value_b = getattr(a.protocol, name), getattr(b.protocol, name)
        if value_a != value_b:
            raise ValueError(
                f"{a.model} and {b.model} cannot be compared: {name} is {value_a!r} for one and {value_b!r} for the other."
            )


def gap_closed(student_fd: float, free_fd: float, teacher_fd: float) -> float:
    """(F_free - F_student) / (F_free - F_teacher): the fraction of the gap between free and teacher that distillation closes.

    `free_fd` is the Fréchet distance that needs no training: the teacher at the student's number of network calls, with
    the best sampler; `teacher_fd` is the teacher's with all its steps. 1: as good as the teacher, 0: no better than free,
    negative: worse than free, above 1: better than the teacher.

    Raises:
        ValueError: `free_fd` and `teacher_fd` are equal, so there is no gap.
    """
    if free_fd == teacher_fd:
        raise ValueError(f"free_fd, teacher_fd: got {free_fd} twice, expects two different distances.")
    return (free_fd - student_fd) / (free_fd - teacher_fd)
