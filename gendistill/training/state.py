"""The state of a training: saved and restored as a whole, beside weights and optimizers. And when it validates, saves, ends."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from gendistill.training.trainer_config import TrainerConfig


@dataclass(frozen=True)
class Validation:
    """The outcome of a validation: `score` (smaller is better) decides which checkpoint becomes the student."""

    score: float
    figures: dict[str, Any]


@dataclass
class TrainState:
    """Everything that a resumed run goes on from.

    Attributes:
        step: optimizer steps made.
        seconds: of training, in all processes of the run's life.
        best: the validation of the best average, at `best_step`.
        validated_step: the last step that was validated.
        ended: why the method ended the training before its limits.
        losses: logged losses by network, the latest ones.
    """

    step: int = 0
    seconds: float = 0.0
    best: Validation | None = None
    best_step: int = 0
    validations_since_best: int = 0
    validated_step: int | None = None
    ended: str | None = None
    losses: dict[str, list[float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> TrainState:
        """What `to_json` gave; names of other versions are passed over."""
        known = {name: value for name, value in saved.items() if name in cls.__dataclass_fields__}
        return cls(**{**known, "best": None if saved["best"] is None else Validation(**saved["best"])})

    def add(self, validation: Validation) -> bool:
        """Count a validation; whether it is the best so far. That of the initial weights is kept only until there is one of
        trained ones."""
        self.validated_step = self.step
        better = self.best is None or self.best_step == 0 or validation.score < self.best.score
        if better:
            self.best, self.best_step = validation, self.step
        self.validations_since_best = 0 if better else self.validations_since_best + 1
        return better

    def end(self, reason: str | None) -> None:
        """End the training where the method gives a reason; on every process, since all see the same figures."""
        if reason is not None and self.ended is None:
            self.ended = f"training ended at step {self.step}: {reason}; the best so far is that of step {self.best_step}"


class Limits:
    """What the settings say of when a training validates, saves and ends, and of its learning rate."""

    def __init__(self, config: TrainerConfig) -> None:
        self.config = config

    def out_of_time(self, state: TrainState) -> bool:
        """By this process's clock."""
        return self.config.max_minutes is not None and state.seconds / 60 >= self.config.max_minutes

    def checkpoint_is_old(self, saved_at: float) -> bool:
        """By this process's clock (`time.monotonic`)."""
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

    def learning_rate(self, state: TrainState) -> float:
        """Of the next step: a linear warm-up, then constant, or a cosine to 0 at the limit that comes first."""
        config = self.config
        rate = config.learning_rate * min(1.0, (state.step + 1) / (config.warmup_steps + 1))
        if config.lr_schedule == "constant":
            return rate
        progress = state.step / config.max_steps
        if config.max_minutes:
            progress = max(progress, state.seconds / 60 / config.max_minutes)
        return rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
