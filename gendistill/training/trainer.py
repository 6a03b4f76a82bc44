"""The training loop: validate, checkpoint, step. It knows no method."""

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
from gendistill.training.preparation import prepare
from gendistill.training.processes import join_processes
from gendistill.training.snapshot import Optimizers, restore, snapshot
from gendistill.training.state import Limits, TrainState, Validation
from gendistill.training.step import OptimizerStep, TrainingData
from gendistill.training.stopping import Stopped, StopSignals
from gendistill.training.trainer_config import TrainerConfig

Validate = Callable[[int], Validation]


@dataclass(frozen=True)
class TrainingResult:
    """What came of it; `ended` says why the method ended the training before its limits."""

    steps: int
    seconds: float
    best_step: int
    best: Validation | None
    ended: str | None = None


class Trainer:
    """Trains a method on cached data.

    A resumed run sees what an uninterrupted one would have seen, and so does a run on another number of processes.

    Args:
        validate: called every `validate_every` steps with the step, on every process; the average is what it should look
            at, and what the main process gets is what counts. Without it the last step's average becomes the student.
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
        cpu: bool = False,
    ) -> None:
        self.method, self.data, self.config, self.seed, self.validate = method, data, config, seed, validate
        self.run_folder = run_folder
        join_processes(config, "cpu" if cpu else "")
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            cpu=cpu,
            log_with=config.trackers or None,
            project_config=ProjectConfiguration(str(run_folder), str(run_folder)),
        )
        self.checkpoints = Checkpoints(run_folder / "checkpoints")
        self.log = RunLog(run_folder / "log.jsonl")
        self.state, self.limits = TrainState(), Limits(config)
        self.unsaved, self.saved_at = False, time.monotonic()

    def train(self, *, resume: bool = False) -> TrainingResult:
        """Run to the limits, or to where the method ends it; leaves the best average loaded in the method.

        Raises:
            ValueError: there is a run in the folder already and `resume` was not requested, no checkpoint of it is whole,
                or training has gone wrong: the last good checkpoint is kept.
            Stopped: SIGTERM or Ctrl-C came; there is a checkpoint of the last step.
        """
        if self.checkpoints.steps() and not resume:
            raise ValueError(f"out {self.run_folder} holds a run already; expects --resume, or another folder")
        self.run_folder.mkdir(parents=True, exist_ok=True)
        accelerator = self.accelerator
        optimizers = prepare(self.method, self.config, accelerator)
        last = self.checkpoints.load_last()
        log_size = self._restore(optimizers, last) if last else 0
        accelerator.wait_for_everyone()  # before any file is removed that another one may be reading
        if accelerator.is_main_process:
            self.checkpoints.tidy(last.name if last else None)
            self.log.cut(log_size)
        if last is None:
            self._write({"data": self.data.summary()})
        state = self.state
        if self.config.trackers:
            accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": state.step + 1}})
        with StopSignals() as stop:
            with training_bar(self.config.max_steps, state.step, accelerator.is_main_process) as show:
                stopped = self._loop(self.stepper(optimizers), stop, show)
        accelerator.wait_for_everyone()
        for tracker in accelerator.trackers:  # and not `end_training`, which ends the processes' ties: a stage may follow
            tracker.finish()
        if stopped or stop.number is not None:
            kept = "with a checkpoint; go on with --resume" if self.checkpoints.steps() else "before the first checkpoint"
            raise Stopped(f"stopped after step {state.step}, {kept}", stop.number)
        if state.best is not None:
            self.method.networks.load_average(self.checkpoints.load_best(state.best_step))
        return TrainingResult(state.step, state.seconds, state.best_step, state.best, state.ended)

    def stepper(self, optimizers: Optimizers) -> OptimizerStep:
        """Optimizer steps whose losses are watched."""
        self.guard = LossGuard(self.config.divergence_factor if self.method.monotone else None, self.state.losses)
        return OptimizerStep(self.method, self.data, self.config, self.accelerator, optimizers, self.guard, self.seed)

    def _loop(self, step: OptimizerStep, stop: StopSignals, show: Callable[[int, str | None], None]) -> bool:
        """Until all is done (False) or a signal has come (True)."""
        state, limits, started = self.state, self.limits, time.monotonic() - self.state.seconds
        while True:
            stopped, late, old = self._on_any_process(
                stop.number is not None, limits.out_of_time(state), limits.checkpoint_is_old(self.saved_at)
            )
            due = late or limits.reached(state) or limits.validation_due(state)
            if self.validate and not stopped and due and state.validated_step != state.step:
                stopped = not self._validate(stop)
            finished = late or limits.reached(state)
            if self.unsaved and (stopped or finished or limits.checkpoint_due(state) or (old and state.step > 0)):
                self._save(step.optimizers)
            if stopped or finished:
                return stopped
            losses = step(state, limits.learning_rate(state))
            state.step, self.unsaved = state.step + 1, True
            self.method.after_step(state.step)
            state.seconds = time.monotonic() - started
            show(state.step, self._log(losses) if limits.log_due(state) else None)

    def _on_any_process(self, *conditions: bool) -> list[bool]:
        """Each of them, true on all processes where it is on one: clocks and signals differ."""
        if self.accelerator.num_processes == 1:
            return list(conditions)
        flags = torch.tensor(conditions, dtype=torch.float32, device=self.accelerator.device)
        return (self.accelerator.reduce(flags, "sum") > 0).tolist()

    def _validate(self, stop: StopSignals) -> bool:
        """Validate the average and keep it if it is the best so far. False if a signal cut this short: done on resume."""
        assert self.validate is not None
        state, average = self.state, self.method.networks.average_state()
        self._require_finite({f"average.{name}": tensor for name, tensor in average.items()})
        if self.accelerator.num_processes == 1:
            try:
                with stop.at_once():
                    validation = self.validate(state.step)
            except Stopped:
                return False
        else:  # this process cannot leave others that wait for it
            [validation] = broadcast_object_list([self.validate(state.step)])
        self._write({"validation": validation.figures})
        self.accelerator.log({"validation/score": validation.score}, step=state.step)
        self.unsaved = True
        if state.add(validation) and self.accelerator.is_main_process:
            self.checkpoints.save_best(state.step, average, asdict(validation))
        state.end(self.method.stop_reason({}))
        return True

    def _log(self, losses: dict[str, Tensor]) -> str:
        """Write the means over all processes; gives them in a few words."""
        state, networks = self.state, list(self.guard.losses)
        everything = [value.detach().float() for value in (*self.guard.losses.values(), *losses.values())]
        means: list[float] = self.accelerator.reduce(torch.stack(everything), "mean").tolist()
        self.guard.check(state.step, dict(zip(networks, means[: len(networks)], strict=True)), self.limits.learning_rate(state))
        values = dict(zip(losses, means[len(networks) :], strict=True))
        state.end(self.method.stop_reason(values))
        self._write(values)
        self.accelerator.log(values, step=state.step)
        return f"loss {values.get('loss', next(iter(values.values()))):.4f}  {state.step / state.seconds:.2f} steps/s"

    def _write(self, figures: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.log.write({"step": self.state.step, "seconds": round(self.state.seconds, 1), **figures})

    def _require_finite(self, weights: dict[str, Tensor]) -> None:
        if not all_finite(weights.values()):
            name = next(name for name, tensor in weights.items() if not tensor.isfinite().all())
            rate = self.limits.learning_rate(self.state)
            raise ValueError(self.guard.not_finite(self.state.step, rate, f"the weight {name}"))

    def _save(self, optimizers: Optimizers) -> None:
        """Gathered by all processes, written by the main one, read by any number of them."""
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
        """Go on from a checkpoint. Gives the size that the log had then."""
        for damage in last.passed_over:
            self.accelerator.print(f"checkpoint {damage}; going on from {last.name}", file=sys.stderr)
        if not restore(self.method, optimizers, last.weights, last.optimizers):
            raise ValueError(
                f"out {self.run_folder} holds a run of another kind of student; expects the settings of its config.yaml to resume"
            )
        self.state = TrainState.from_json(last.state)
        self.method.load_state_dict(last.state.get("method", {}))
        if self.accelerator.scaler is not None and last.state["scaler"]:
            self.accelerator.scaler.load_state_dict(last.state["scaler"])
        log_size: int = last.state["log_size"]
        return log_size
