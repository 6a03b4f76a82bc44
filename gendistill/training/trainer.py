"""The training loop: validate, checkpoint, step. It is independent of the method."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast_object_list
from torch import Tensor

from gendistill.runtime.progress import training_bar
from gendistill.training.checkpoint import Checkpoint, Checkpoints
from gendistill.training.divergence import LossGuard, all_finite
from gendistill.training.log import RunLog
from gendistill.training.method import Method
from gendistill.training.mixed_precision import loss_scaler, require_scale
from gendistill.training.preparation import prepare
from gendistill.training.processes import join_processes
from gendistill.training.snapshot import Optimizers, restore, snapshot
from gendistill.training.state import Limits, TrainState, Validation
from gendistill.training.step import OptimizerStep, TrainingData
from gendistill.training.stopping import Stopped, StopSignals
from gendistill.training.trainer_config import TrainerConfig

Validate = Callable[[int], Validation]
OnValidation = Callable[[TrainState, Validation], None]


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training; `ended` is the reason for which the method ended it before its limits."""

    steps: int
    seconds: float
    best_step: int
    best: Validation | None
    ended: str | None = None


class Trainer:
    """Trains a method on cached data.

    Batches and random numbers are the same in a resumed run as in an uninterrupted one, and on any number of processes.

    Args:
        validate: called with the step every `validate_every` steps, on every process; it should evaluate the EMA. The result of
            the main process counts. Without it the EMA of the last step becomes the student.
        on_validation: called on every process with the state and the result after each validation; an exception of it ends the
            training, without a student.
    """

    def __init__(
        self,
        method: Method,
        data: TrainingData,
        config: TrainerConfig,
        run_folder: Path,
        *,
        seed: int,
        validate: Validate | None = None,
        on_validation: OnValidation | None = None,
        cpu: bool = False,
    ) -> None:
        self.method, self.data, self.config, self.seed, self.validate = method, data, config, seed, validate
        self.run_folder, self.on_validation = run_folder, on_validation
        join_processes(config, "cpu" if cpu else "")
        self.accelerator = Accelerator(
            mixed_precision="no",  # accelerate has one for all stages, and unscales all optimizers; see `mixed_precision.py`
            cpu=cpu,
            log_with=config.trackers or None,
            project_config=ProjectConfiguration(str(run_folder), str(run_folder)),
        )
        self.accelerator.scaler = loss_scaler(config.mixed_precision, method.held_networks(), self.accelerator.device)
        self.checkpoints = Checkpoints(run_folder / "checkpoints")
        self.log = RunLog(run_folder / "log.jsonl")
        self.state, self.limits = TrainState(), Limits(config)
        self.unsaved, self.saved_at = False, time.monotonic()
        self.last_validation: Validation | None = None

    def train(self, *, resume: bool = False) -> TrainingResult:
        """Train to the limits, or until the method ends the training; loads the best EMA weights into the method.

        Raises:
            ValueError: the folder holds a run already and `resume` is False, none of its checkpoints is intact, or training has
                diverged: the last good checkpoint is kept.
            Stopped: the process got SIGTERM or Ctrl-C; there is a checkpoint of the last step.
        """
        if self.checkpoints.steps() and not resume:
            raise ValueError(f"out {self.run_folder} holds a run already; expects --resume, or another folder")
        self.run_folder.mkdir(parents=True, exist_ok=True)
        accelerator = self.accelerator
        optimizers = prepare(self.method, self.config, accelerator)
        last = self.checkpoints.load_last()
        log_size = self._restore(optimizers, last) if last else 0
        accelerator.wait_for_everyone()  # before a file is removed that another process may be reading
        if accelerator.is_main_process:
            self.checkpoints.tidy(last.name if last else None)
            self.log.cut(log_size)
        if last is None:
            self._write({"data": self.data.summary()})
        state = self.state
        if self.config.trackers:
            accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": state.step + 1}})
        with StopSignals() as stop:
            left = self.limits.seconds_left(state)
            with training_bar(self.config.max_steps, state.step, accelerator.is_main_process, left) as show:
                stopped = self._loop(self.stepper(optimizers), stop, show)
        accelerator.wait_for_everyone()
        for tracker in accelerator.trackers:  # `end_training` would also end the process group: a stage may follow
            tracker.finish()
        if stopped or stop.number is not None:
            saved = "its checkpoint is saved" if self.checkpoints.steps() else "there is no checkpoint yet"
            raise Stopped(f"stopped after step {state.step}; {saved}", stop.number)
        if state.best is not None:
            self.method.networks.load_average(self.checkpoints.load_best(state.best_step))
            self.method.weights_of(state.best_step)
        return TrainingResult(state.step, state.seconds, state.best_step, state.best, state.ended)

    def stepper(self, optimizers: Optimizers) -> OptimizerStep:
        """The optimizer steps, with a guard on the losses."""
        self.guard = LossGuard(self.config.divergence_factor if self.method.monotone else None, self.state.losses)
        return OptimizerStep(self.method, self.data, self.config, self.accelerator, optimizers, self.guard, self.seed)

    def _loop(self, step: OptimizerStep, stop: StopSignals, show: Callable[[int, str | None], None]) -> bool:
        """Train until the limits (returns False) or until a signal (returns True)."""
        state, limits, started = self.state, self.limits, time.monotonic() - self.state.seconds
        while True:
            [stopped, late, old], state.fraction = self._agreed(
                [stop.number is not None, limits.out_of_time(state), limits.checkpoint_is_old(self.saved_at)],
                limits.fraction(state),
            )
            due = late or limits.reached(state) or limits.validation_due(state)
            if self.validate and not stopped and due and state.validated_step != state.step:
                stopped = not self._validate(stop)
            finished = late or limits.reached(state)
            if self.unsaved and (stopped or finished or limits.checkpoint_due(state) or (old and state.step > 0)):
                self._save(step.optimizers)
            if stopped or finished:
                return stopped
            losses, skipped = step(state, limits.learning_rate(state))
            state.step, self.unsaved = state.step + 1, True
            state.skipped += bool(skipped)
            self.method.after_step(state.step, skipped)
            state.seconds = time.monotonic() - started
            show(state.step, self._log(losses) if limits.log_due(state) else None)

    def _agreed(self, conditions: list[bool], fraction: float) -> tuple[list[bool], float]:
        """What all processes go by, whose clocks and signals differ: a condition is true if it is on one of them, and the
        fraction of the run is their mean."""
        count = self.accelerator.num_processes
        if count == 1:
            return conditions, fraction
        values = torch.tensor([*conditions, fraction], dtype=torch.float64, device=self.accelerator.device)
        *flags, total = self.accelerator.reduce(values, "sum").tolist()
        return [flag > 0 for flag in flags], total / count

    def _validate(self, stop: StopSignals) -> bool:
        """Validate the EMA and save it if it is the best so far. False if a signal interrupted it: it is repeated on resume."""
        assert self.validate is not None
        state, average = self.state, self.method.networks.average_state()
        self._require_finite({f"average.{name}": tensor for name, tensor in average.items()})
        if self.accelerator.num_processes == 1:
            try:
                with stop.at_once():
                    validation = self.validate(state.step)
            except Stopped:
                return False
        else:  # this process must not leave while others wait for it
            [validation] = broadcast_object_list([self.validate(state.step)])
        self.last_validation = validation
        self._write({"validation": validation.figures})
        self.accelerator.log({"validation/score": validation.score}, step=state.step)
        self.unsaved = True
        if state.add(validation) and self.accelerator.is_main_process:
            self.checkpoints.save_best(state.step, average, asdict(validation))
        state.end(validation.reason_to_end or self.method.stop_reason({}))
        if self.on_validation is not None:
            self.on_validation(state, validation)
        return True

    def _log(self, losses: dict[str, Tensor]) -> str:
        """Write the means over all processes; gives the loss and the last validation for the progress bar."""
        state, networks = self.state, list(self.guard.losses)
        all_values = [value.detach().float() for value in (*self.guard.losses.values(), *losses.values())]
        means: list[float] = self.accelerator.reduce(torch.stack(all_values), "mean").tolist()
        self.guard.check(state.step, dict(zip(networks, means[: len(networks)], strict=True)), self.limits.learning_rate(state))
        values = dict(zip(losses, means[len(networks) :], strict=True))
        if self.accelerator.scaler is not None:
            require_scale(self.accelerator.scaler, state.step)
            values["skipped_steps"] = state.skipped
        state.end(self.method.stop_reason(values))
        self._write(values)
        self.accelerator.log(values, step=state.step)
        loss = f"loss {values.get('loss', next(iter(values.values()))):.4f}, {state.step / state.seconds:.2f} steps/s"
        validation = self.last_validation
        return loss if validation is None else f"{loss}, validation {validation.score:.4g} (lower is better)"

    def _write(self, figures: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.log.write({"step": self.state.step, "seconds": round(self.state.seconds, 1), **figures})

    def _require_finite(self, weights: dict[str, Tensor]) -> None:
        if not all_finite(weights.values()):
            name = next(name for name, tensor in weights.items() if not tensor.isfinite().all())
            rate = self.limits.learning_rate(self.state)
            raise ValueError(self.guard.not_finite(self.state.step, rate, f"the weight {name}"))

    def _save(self, optimizers: Optimizers) -> None:
        """Save a checkpoint: gathered by all processes, written by the main process."""
        weights, moments = snapshot(self.method, optimizers)
        self._require_finite(weights)
        scaler, state = self.accelerator.scaler, self.state
        saved = {
            **state.to_json(),
            "method": self.method.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        if self.accelerator.is_main_process:
            saved["log_size"] = self.log.flushed_size()
            self.checkpoints.save(state.step, weights, moments, saved, None if state.best is None else state.best_step)
        self.unsaved, self.saved_at = False, time.monotonic()

    def _restore(self, optimizers: Optimizers, last: Checkpoint) -> int:
        """Resume from a checkpoint; returns the size of the log at that step."""
        for damage in last.skipped:
            self.accelerator.print(f"checkpoint {damage}; resuming from {last.name}", file=sys.stderr)
        if not restore(self.method, optimizers, last.weights, last.optimizers):
            raise ValueError(
                f"out {self.run_folder} holds a run of a different student; expects the settings of its config.yaml to resume"
            )
        self.state = TrainState.from_json(last.state)
        self.method.load_state_dict(last.state.get("method", {}))
        self.method.weights_of(self.state.step)
        if self.accelerator.scaler is not None and last.state["scaler"]:
            self.accelerator.scaler.load_state_dict(last.state["scaler"])
        log_size: int = last.state["log_size"]
        return log_size
