"""The training loop: validation, checkpoint, data of a step, losses of the method, optimizers, average. In this order."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast_object_list
from torch import Tensor

from gendistill.runtime.progress import training_bar
from gendistill.runtime.random import PerSampleRandom
from gendistill.training.checkpoint import Checkpoint, Checkpoints
from gendistill.training.divergence import LossGuard, all_finite
from gendistill.training.log import RunLog
from gendistill.training.method import Method
from gendistill.training.preparation import prepare, require_gradients, require_trainable
from gendistill.training.processes import join_processes
from gendistill.training.sharding import whole
from gendistill.training.snapshot import Optimizers, restore, snapshot
from gendistill.training.stopping import Stopped, StopSignals
from gendistill.training.trainer_config import TrainerConfig


@dataclass(frozen=True)
class Validation:
    """What a validation says: `score` (smaller is better) decides which checkpoint becomes the student."""

    score: float
    figures: dict[str, Any]


Validate = Callable[[int], Validation]


@dataclass(frozen=True)
class TrainingResult:
    """What came of it; `ended` says why training was ended before its time, where the method asked for it."""

    steps: int
    seconds: float
    best_step: int
    best: Validation | None
    ended: str | None = None


class TrainingData(Protocol):
    """What a method learns on, by row."""

    def __len__(self) -> int: ...

    def rows_of_step(self, seed: int, step: int, batch_size: int) -> Tensor:
        """The rows (batch_size,) int64 that global step `step` sees, over all processes."""
        ...

    def batch(self, rows: Tensor, random: PerSampleRandom, device: torch.device) -> Any:
        """What the method's `updates` takes of these rows (B,)."""
        ...

    def summary(self) -> dict[str, Any]:
        """What there is, for a log."""
        ...


class Trainer:
    """Trains a method on cached data.

    Noise, timesteps and data order are functions of (seed, step, sample), never of a global generator: a resumed run sees
    what an uninterrupted one would have seen, and so does a run on another number of processes.

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
        self.guard = LossGuard(config.divergence_factor if method.monotone else None)
        self.step, self.seconds = 0, 0.0
        self.best: Validation | None = None
        self.best_step, self.validations_since_best = 0, 0
        self.validated_step: int | None = None
        self.ended: str | None = None
        self.unsaved, self.saved_at = False, time.monotonic()
        self.seen_to_learn: set[str] = set()  # optimizers whose first step is behind them

    def train(self, *, resume: bool = False) -> TrainingResult:
        """Run to the end, or to where time or patience runs out; leaves the best average loaded in the method.

        Raises:
            ValueError: there is a run in the folder already and `resume` was not asked for, no checkpoint of it is whole,
                or training has gone wrong: the last good checkpoint is kept.
            Stopped: SIGTERM or Ctrl-C came; there is a checkpoint of the last step.
        """
        if self.checkpoints.steps() and not resume:
            raise ValueError(f"out {self.run_folder} holds a run already; takes --resume, or another folder")
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
        if self.config.trackers:
            accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": self.step + 1}})
        with StopSignals() as stop:
            with training_bar(self.config.max_steps, self.step, accelerator.is_main_process) as show:
                stopped = self._loop(optimizers, stop, show)
        accelerator.wait_for_everyone()
        for tracker in accelerator.trackers:  # and not `end_training`, which ends the processes' ties: a stage may follow
            tracker.finish()
        if stopped or stop.number is not None:
            kept = "with a checkpoint; go on with --resume" if self.checkpoints.steps() else "before the first checkpoint"
            raise Stopped(f"stopped after step {self.step}, {kept}", stop.number)
        if self.best is not None:
            self.method.networks.load_average(self.checkpoints.load_best(self.best_step))
        return TrainingResult(self.step, self.seconds, self.best_step, self.best, self.ended)

    def _loop(self, optimizers: Optimizers, stop: StopSignals, show: Callable[[int, str | None], None]) -> bool:
        """Steps until all is done (False) or a signal has come (True)."""
        config, started = self.config, time.monotonic() - self.seconds
        while True:
            stopped, out_of_time, out_of_minutes = self._on_any_process(
                stop.number is not None, self._out_of_time(), self._checkpoint_minutes_over()
            )
            finished = out_of_time or self._out_of_steps_or_patience()
            if self.validate and not stopped and self._validation_due(finished):
                stopped = not self._validate(stop)
                finished = out_of_time or self._out_of_steps_or_patience()
            due = self.step > 0 and (self.step % config.checkpoint_every == 0 or out_of_minutes)
            if self.unsaved and (stopped or finished or due):
                self._save(optimizers)
            if stopped or finished:
                return stopped
            losses = self._train_step(optimizers)
            self.step, self.unsaved = self.step + 1, True
            self.method.after_step(self.step)
            self.seconds = time.monotonic() - started
            logged = self.step % config.log_every == 0 or self.step == config.max_steps
            show(self.step, self._log(losses) if logged else None)

    def _train_step(self, optimizers: Optimizers) -> dict[str, Tensor]:
        """One optimizer step over the global batch, of which this process takes its share in micro-batches."""
        config, accelerator = self.config, self.accelerator
        rows = self.data.rows_of_step(self.seed, self.step, config.batch_size)
        share = config.batch_size // accelerator.num_processes
        micro = share // config.gradient_accumulation_steps
        for name, optimizer in optimizers.items():
            factor = self.method.optimizer_settings(name).learning_rate_factor
            for group in optimizer.param_groups:
                group["lr"] = self._learning_rate() * factor
        totals: dict[str, Tensor] = {}
        for number in range(config.gradient_accumulation_steps):
            first = accelerator.process_index * share + number * micro
            random = PerSampleRandom(self.seed, self.step, first, micro)
            batch = self.data.batch(rows[first : first + micro], random, accelerator.device)
            last = number == config.gradient_accumulation_steps - 1
            with ExitStack() as stack:
                if not last:
                    for module in self.method.trained_modules().values():
                        stack.enter_context(accelerator.no_sync(module))
                stack.enter_context(accelerator.autocast())
                for update in self.method.updates(batch, self.step, random):
                    for name, value in update.watch.items():
                        self.guard.note(self.step + 1, name, value.detach())
                    self.guard.watch(self.step + 1, update.optimizers[0], update.loss.detach())
                    with torch.autocast(accelerator.device.type, enabled=False):  # gradients keep the forward pass's dtypes
                        accelerator.backward(update.loss / config.gradient_accumulation_steps)
                    for name, value in update.logs.items():
                        totals[name] = totals.get(name, 0) + value / config.gradient_accumulation_steps
                    for name in update.optimizers if last else ():
                        parameters = self.method.trained_parameters()[name]
                        if name not in self.seen_to_learn:
                            require_trainable(name, parameters)
                            if name == update.optimizers[0]:  # of the others, a schedule may leave out the loss
                                require_gradients(name, parameters)
                            self.seen_to_learn.add(name)
                        norm = accelerator.clip_grad_norm_(parameters.values(), config.max_grad_norm)
                        if norm is not None:
                            totals[f"{name}_gradient_norm"] = whole(norm)
                        optimizers[name].step()
                        optimizers[name].zero_grad(set_to_none=True)
        return totals

    def _learning_rate(self) -> float:
        return self.config.learning_rate * self._lr_scale()

    def _lr_scale(self) -> float:
        warm = min(1.0, (self.step + 1) / (self.config.warmup_steps + 1))
        if self.config.lr_schedule == "constant":
            return warm
        progress = self.step / self.config.max_steps
        if self.config.max_minutes:
            progress = max(progress, self.seconds / 60 / self.config.max_minutes)
        return warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))

    def _out_of_time(self) -> bool:
        return self.config.max_minutes is not None and self.seconds / 60 >= self.config.max_minutes

    def _out_of_steps_or_patience(self) -> bool:
        patience = self.config.patience
        out_of_patience = patience is not None and self.validations_since_best >= patience
        return self.ended is not None or out_of_patience or self.step >= self.config.max_steps

    def _checkpoint_minutes_over(self) -> bool:
        minutes = self.config.checkpoint_minutes
        return minutes is not None and time.monotonic() - self.saved_at >= minutes * 60

    def _validation_due(self, finished: bool) -> bool:
        return self.validated_step != self.step and (finished or self.step % self.config.validate_every == 0)

    def _on_any_process(self, *conditions: bool) -> list[bool]:
        """Each of them, true on all processes where it is on one: clocks and signals differ."""
        if self.accelerator.num_processes == 1:
            return list(conditions)
        flags = torch.tensor(conditions, dtype=torch.float32, device=self.accelerator.device)
        return (self.accelerator.reduce(flags, "sum") > 0).tolist()

    def _validate(self, stop: StopSignals) -> bool:
        """Judge the average and keep it if it is the best so far. False if a signal cut this short, to be done on resume.

        What training starts from is judged for the log, and kept only until there is something that was trained.
        """
        assert self.validate is not None
        average = self.method.networks.average_state()
        self._require_finite({f"average.{name}": tensor for name, tensor in average.items()})
        if self.accelerator.num_processes == 1:
            try:
                with stop.at_once():
                    validation = self.validate(self.step)
            except Stopped:
                return False
        else:  # this process cannot leave others that wait for it
            [validation] = broadcast_object_list([self.validate(self.step)])
        self._write({"validation": validation.figures})
        self.accelerator.log({"validation/score": validation.score}, step=self.step)
        self.validated_step, self.unsaved = self.step, True
        if self.best is None or self.best_step == 0 or validation.score < self.best.score:
            self.best, self.best_step, self.validations_since_best = validation, self.step, 0
            if self.accelerator.is_main_process:
                self.checkpoints.save_best(self.step, average, asdict(validation))
        else:
            self.validations_since_best += 1
        self._heed(self.method.stop_reason({}))
        return True

    def _heed(self, complaint: str | None) -> None:
        """End the training where the method says that it goes wrong; on every process, since all see the same figures."""
        if complaint is not None and self.ended is None:
            self.ended = f"training ended at step {self.step}: {complaint}; the best so far is that of step {self.best_step}"

    def _log(self, losses: dict[str, Tensor]) -> str:
        """Write the means over all processes, and say them in a few words."""
        networks = list(self.guard.losses)
        everything = [value.detach().float() for value in (*self.guard.losses.values(), *losses.values())]
        means: list[float] = self.accelerator.reduce(torch.stack(everything), "mean").tolist()
        self.guard.check(self.step, dict(zip(networks, means[: len(networks)], strict=True)), self._learning_rate())
        values = dict(zip(losses, means[len(networks) :], strict=True))
        self._heed(self.method.stop_reason(values))
        self._write(values)
        self.accelerator.log(values, step=self.step)
        return f"loss {values.get('loss', next(iter(values.values()))):.4f}  {self.step / self.seconds:.2f} steps/s"

    def _write(self, figures: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.log.write({"step": self.step, "seconds": round(self.seconds, 1), **figures})

    def _require_finite(self, weights: dict[str, Tensor]) -> None:
        if not all_finite(weights.values()):
            name = next(name for name, tensor in weights.items() if not tensor.isfinite().all())
            raise ValueError(self.guard.not_finite(self.step, self._learning_rate(), f"the weight {name}"))

    def _save(self, optimizers: Optimizers) -> None:
        """Gathered by all processes, written by the main one, read by any number of them."""
        weights, states = snapshot(self.method, optimizers)
        self._require_finite(weights)
        state = {
            "seconds": self.seconds,
            "best": None if self.best is None else asdict(self.best),
            "best_step": self.best_step,
            "validations_since_best": self.validations_since_best,
            "validated_step": self.validated_step,
            "losses": self.guard.history,
            "method": self.method.state_dict(),
            "ended": self.ended,
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
        }
        if self.accelerator.is_main_process:
            state["log_size"] = self.log.flushed_size()
            self.checkpoints.save(self.step, weights, states, state, None if self.best is None else self.best_step)
        self.unsaved, self.saved_at = False, time.monotonic()

    def _restore(self, optimizers: Optimizers, last: Checkpoint) -> int:
        """Go on from a checkpoint. Gives the size that the log had then."""
        for damage in last.passed_over:
            self.accelerator.print(f"checkpoint {damage}; going on from {last.name}", file=sys.stderr)
        if not restore(self.method, optimizers, last.weights, last.optimizers):
            raise ValueError(
                f"out {self.run_folder} holds a run of another kind of student; takes the settings of its config.yaml to resume"
            )
        state = last.state
        self.step, self.seconds, self.best_step = state["step"], state["seconds"], state["best_step"]
        self.best = None if state["best"] is None else Validation(**state["best"])
        self.validations_since_best, self.validated_step = state["validations_since_best"], state["validated_step"]
        self.guard.history, self.ended = state["losses"], state.get("ended")
        self.method.load_state_dict(state.get("method", {}))
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return state["log_size"]
