"""The settings of a training: optimisation, limits, checkpoints and validations."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.section import Section

DEFAULT_TRACKERS: list[Any] = ["tensorboard"] if find_spec("tensorboard") else []


class TrainerConfig(Section):
    """The optimisation, its checkpoints and its validation."""

    max_steps: int = Field(1000, ge=1, description="Number of optimizer steps", json_schema_extra=about("steps"))
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="Time limit of the training, if it is reached before max_steps; null sets none",
        json_schema_extra=about("minutes"),
    )
    batch_size: int = Field(
        32, ge=1, description="Samples of one optimizer step, over all processes", json_schema_extra=about("samples")
    )
    gradient_accumulation_steps: int = Field(
        1,
        ge=1,
        description="Parts that a batch is split into, whose gradients are added: less memory, the same step but for losses "
        "between the samples of a batch, which compare those of one part",
        json_schema_extra=about("parts of a batch"),
    )
    learning_rate: float = Field(
        2e-4, gt=0, description="Learning rate of the student after the warm-up", json_schema_extra=about(paper=papers.ADAM)
    )
    warmup_steps: int = Field(
        20, ge=0, description="Steps over which the learning rate rises linearly from 0", json_schema_extra=about("steps")
    )
    lr_schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="Learning rate after the warm-up: constant, or a cosine that falls to 0 at max_steps",
        json_schema_extra=about(paper=papers.SGDR, at="equation 5"),
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Decoupled weight decay of AdamW", json_schema_extra=about(paper=papers.ADAMW)
    )
    max_grad_norm: float = Field(
        1.0, gt=0, description="Norm to which longer gradients are clipped", json_schema_extra=about(paper=papers.CLIPPING)
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw",
        description="Optimizer: AdamW, or AdamW with moments of 8 bits (bitsandbytes, on CUDA), which needs less memory",
        json_schema_extra=about(paper=papers.ADAMW),
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = Field(
        "no",
        description="Precision of the forward pass; the trained weights stay float32, and fp16 scales the losses",
        json_schema_extra=about(paper=papers.MIXED_PRECISION),
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Recompute activations in the backward pass: less memory, more time for each step",
        json_schema_extra=about(paper=papers.CHECKPOINTING),
    )
    log_every: int = Field(
        10,
        ge=1,
        description="Interval of the entries in log.jsonl; reading a loss waits for the device",
        json_schema_extra=about("steps"),
    )
    checkpoint_every: int = Field(100, ge=1, description="Interval of the checkpoints", json_schema_extra=about("steps"))
    checkpoint_minutes: float | None = Field(
        None,
        gt=0,
        description="Longest time between two checkpoints, in addition to checkpoint_every; null sets none",
        json_schema_extra=about("minutes"),
    )
    validate_every: int = Field(100, ge=1, description="Interval of the validations", json_schema_extra=about("steps"))
    num_validation: int = Field(
        256, ge=2, description="Number of images that each validation generates", json_schema_extra=about("images")
    )
    num_solver_images: int | None = Field(
        None,
        ge=0,
        description="Number of images on which the solver of the best checkpoint is chosen after training; null is 4 times "
        "num_validation, and no more than num_validation, such as 0, keeps the solver of its validation",
        json_schema_extra=about("images"),
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Number of validations without an improvement after which training stops; null never stops it",
        json_schema_extra=about("validations"),
    )
    divergence_factor: float | None = Field(
        10.0, gt=1, description="Ratio of the loss to its running median above which training stops; null never stops it"
    )
    trackers: list[Literal["tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio"]] = (
        Field(
            DEFAULT_TRACKERS,
            description="Experiment trackers of accelerate; each has to be installed; default: tensorboard where it is",
        )
    )

    @property
    def solver_images(self) -> int:
        """`num_solver_images` with its default."""
        return 4 * self.num_validation if self.num_solver_images is None else self.num_solver_images

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _yaml_no_is_text(cls, value: Any) -> Any:
        return "no" if value is False else value

    @field_validator("trackers")
    @classmethod
    def _installed(cls, trackers: list[str]) -> list[str]:
        for tracker in trackers:
            if find_spec(tracker) is None:
                raise ValueError(f"trackers that are installed (pip install {tracker})")
        return trackers

    @model_validator(mode="after")
    def _batch_is_divisible(self) -> TrainerConfig:
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"trainer.batch_size {self.batch_size}: expects a multiple of gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps})"
            )
        return self

    def updated(self, settings: dict[str, Any], where: str) -> TrainerConfig:
        """A copy with some settings changed, such as those of one stage.

        Args:
            where: the name of the changed settings, for errors.

        Raises:
            ValueError: a setting does not exist, or its value is not valid.
        """
        try:
            return TrainerConfig(**(self.model_dump() | settings))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
