"""The state of a training, saved with weights and optimizers, and the schedule of its validations, checkpoints and end."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from gendistill.training.trainer_config import TrainerConfig


@dataclass(frozen=True)
class Validation:
    """The result of a validation: the checkpoint with the smallest `score` becomes the student.

    Attributes:
        reason_to_end: the reason to end the training with the best checkpoint before this one, if any.
    """

    score: float
    figures: dict[str, Any]
    reason_to_end: str | None = None


@dataclass
class TrainState:
    """The state that a run resumes from.

    Attributes:
        step: optimizer steps done.
        seconds: training time, over all resumptions of the run.
        fraction: fraction of the run that is done, in [0, 1]: of `max_steps` or of `max_minutes`, whichever is larger.
        best: the validation of the best EMA weights, those of `best_step`.
        validated_step: the last step that was validated.
        skipped: steps in which the gradients of an optimizer overflowed float16, so that it did not step.
        ended: the reason for which the method ended the training before its limits.
        losses: the latest logged losses by network.
    """

    step: int = 0
    seconds: float = 0.0
    fraction: float = 0.0
    best: Validation | None = None
    best_step: int = 0
    validations_since_best: int = 0
    validated_step: int | None = None
    skipped: int = 0
    ended: str | None = None
    losses: dict[str, list[float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> TrainState:
        """The inverse of `to_json`; unknown names, of other versions, are ignored."""
        known = {name: value for name, value in saved.items() if name in cls.__dataclass_fields__}
        return cls(**{**known, "best": None if saved["best"] is None else Validation(**saved["best"])})

    def add(self, validation: Validation) -> bool:
        """Add a validation; returns whether it is the best so far. The validation of the initial weights counts only until the
        first one of trained weights."""
        self.validated_step = self.step
        better = self.best is None or (
            validation.reason_to_end is None and (self.best_step == 0 or validation.score < self.best.score)
        )
        if better:
            self.best, self.best_step = validation, self.step
        self.validations_since_best = 0 if better else self.validations_since_best + 1
        return better

    def end(self, reason: str | None) -> None:
        """End the training where the method gives a reason; on every process, since all have the same values."""
        if reason is not None and self.ended is None:
            self.ended = f"training ended at step {self.step}: {reason}; the best so far is that of step {self.best_step}"


class Limits:
    """The limits of a training, the steps of its validations, checkpoints and log lines, and its learning rate schedule."""

    def __init__(self, config: TrainerConfig) -> None:
        self.config = config

    def out_of_time(self, state: TrainState) -> bool:
        """Whether `max_minutes` have passed, by the clock of this process."""
        return self.config.max_minutes is not None and state.seconds / 60 >= self.config.max_minutes

    def seconds_left(self, state: TrainState) -> float | None:
        """Seconds until `max_minutes` have passed; None without this limit."""
        return None if self.config.max_minutes is None else max(60 * self.config.max_minutes - state.seconds, 0.0)

    def checkpoint_is_old(self, saved_at: float) -> bool:
        """Whether `checkpoint_minutes` have passed since `saved_at`, by the clock of this process (`time.monotonic`)."""
        return self.config.checkpoint_minutes is not None and time.monotonic() - saved_at >= self.config.checkpoint_minutes * 60

    def reached(self, state: TrainState) -> bool:
        patience = self.config.patience
        out_of_patience = patience is not None and state.validations_since_best >= patience
        return state.ended is not None or out_of_patience or state.step >= self.config.max_steps

    def validation_due(self, state: TrainState) -> bool:
        return state.step % self.config.validate_every == 0

    def checkpoint_due(self, state: TrainState) -> bool:
        return state.step > 0 and state.step % self.config.checkpoint_every == 0

    def log_due(self, state: TrainState) -> bool:
        return state.step % self.config.log_every == 0 or state.step == self.config.max_steps

    def fraction(self, state: TrainState) -> float:
        """The fraction of the run that is done, by the clock of this process."""
        minutes = self.config.max_minutes
        by_time = state.seconds / 60 / minutes if minutes else 0.0
        return min(max(state.step / self.config.max_steps, by_time), 1.0)

    def learning_rate(self, state: TrainState) -> float:
        """The learning rate of the next step: linear warm-up, then constant or a cosine to 0 at the first limit.

        Skipped steps do not count for the warm-up.
        """
        config = self.config
        rate = config.learning_rate * min(1.0, (state.step - state.skipped + 1) / (config.warmup_steps + 1))
        if config.lr_schedule == "constant":
            return rate
        return rate * 0.5 * (1 + math.cos(math.pi * state.fraction))
