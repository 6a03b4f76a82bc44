"""The settings of a training: optimisation, limits, checkpoints and validations."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gendistill.settings.section import Section

DEFAULT_TRACKERS = ["tensorboard"] if find_spec("tensorboard") else []


class TrainerConfig(Section):
    """The optimisation, its checkpoints and its validation."""

    max_steps: int = Field(1000, ge=1, description="optimizer steps")
    max_minutes: float | None = Field(None, gt=0, description="stop after so many minutes of training, if sooner")
    batch_size: int = Field(32, ge=1, description="samples an optimizer step, over all processes")
    gradient_accumulation_steps: int = Field(1, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    warmup_steps: int = Field(20, ge=0)
    lr_schedule: Literal["constant", "cosine"] = Field("constant", description="after the warm-up; cosine falls to 0")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    gradient_checkpointing: bool = False
    log_every: int = Field(10, ge=1, description="steps; to read a loss is to wait for the device")
    checkpoint_every: int = Field(100, ge=1, description="steps")
    checkpoint_minutes: float | None = Field(None, gt=0, description="and where the last one is so many minutes old")
    validate_every: int = Field(100, ge=1, description="steps")
    num_validation: int = Field(256, ge=2, description="images sampled at a validation")
    patience: int | None = Field(None, ge=1, description="stop after so many validations without a better one")
    divergence_factor: float | None = Field(
        10.0, gt=1, description="stop where the loss stays so many times above its median; null lets it"
    )
    trackers: list[Literal["tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio"]] = (
        Field(
            DEFAULT_TRACKERS,
            description="Experiment trackers of accelerate; each has to be installed; default: tensorboard where it is",
        )
    )

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
