"""The training loop: data of a step, losses of the method, optimizers, average, checkpoint, validation. In this order."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from gendistill.config import TrainerConfig
from gendistill.data.batches import LatentData
from gendistill.data.order import PerSampleRandom
from gendistill.methods.base import Method
from gendistill.training.checkpoint import Checkpoints


@dataclass(frozen=True)
class Validation:
    """What a validation says: `score` (smaller is better) decides which checkpoint becomes the student."""

    score: float
    figures: dict[str, Any]


Validate = Callable[[int], Validation]


@dataclass(frozen=True)
class TrainingResult:
    steps: int
    seconds: float
    best_step: int
    best: Validation | None


class Trainer:
    """Trains a method on cached data.

    Noise, timesteps and data order are functions of (seed, step, sample), never of a global generator: a resumed run sees
    what an uninterrupted one would have seen, and so does a run on another number of processes.

    Args:
        validate: called every `validate_every` steps with the step; the average is what it should look at. Without it
            the last step's average becomes the student.
    """

    def __init__(
        self,
        method: Method,
        data: LatentData,
        config: TrainerConfig,
        run_folder: Path,
        *,
        seed: int,
        validate: Validate | None = None,
        cpu: bool = False,
    ) -> None:
        self.method, self.data, self.config, self.seed, self.validate = method, data, config, seed, validate
        self.run_folder = run_folder
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            cpu=cpu,
            log_with=config.trackers or None,
            project_config=ProjectConfiguration(str(run_folder), str(run_folder)),
        )
        self.checkpoints = Checkpoints(run_folder / "checkpoints")
        self.step, self.seconds = 0, 0.0
        self.best: Validation | None = None
        self.best_step, self.validations_since_best = 0, 0

    def train(self, *, resume: bool = False) -> TrainingResult:
        """Run to the end, or to where time or patience runs out; leaves the best average loaded in the method.

        Raises:
            ValueError: there is a run in the folder already and `resume` was not asked for, or the loss is not finite.
        """
        if self.checkpoints.steps() and not resume:
            raise ValueError(f"out {self.run_folder} holds a run already; takes --resume, or another folder")
        accelerator = self.accelerator
        optimizers = self._prepare()
        if resume:
            self._load(optimizers)
        if self.config.trackers:
            accelerator.init_trackers("tensorboard")
        self._write({"data": self.data.summary()})
        with self._progress() as (advance, note):
            started = time.monotonic() - self.seconds
            if self.validate and self.step == 0:
                self._validate()
            finished = self._finished()
            while not finished:
                losses = self._train_step(optimizers)
                self.step += 1
                self.method.after_step(self.step)
                self.seconds = time.monotonic() - started
                finished = self._finished()
                if self.step % 10 == 0 or finished:
                    self._log(losses, note)
                advance()
                if self.validate and (self.step % self.config.validate_every == 0 or finished):
                    self._validate()
                    finished = self._finished()
                if self.step % self.config.checkpoint_every == 0 or finished:
                    self._save(optimizers)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        if (best := self.checkpoints.load_best()) is not None:
            self.method.networks.load_average(best[0])
        return TrainingResult(self.step, self.seconds, self.best_step, self.best)

    def _prepare(self) -> dict[str, torch.optim.Optimizer]:
        """Optimizers over the method's parameters, and its modules wrapped for however many processes there are."""
        modules = self.method.trained_modules()
        if self.config.gradient_checkpointing:
            for module in modules.values():
                base: Any = getattr(module, "base", module)
                base.enable_gradient_checkpointing()
        optimizers = {}
        for name, parameters in self.method.trained_parameters().items():
            optimizers[name] = self.accelerator.prepare(self._optimizer(list(parameters.values())))
        self.method.replace_modules({name: self.accelerator.prepare(module) for name, module in modules.items()})
        return optimizers

    def _optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        options: dict[str, Any] = {
            "lr": self.config.learning_rate,
            "betas": (0.9, 0.999),
            "weight_decay": self.config.weight_decay,
        }
        if self.config.optimizer == "adamw":
            return torch.optim.AdamW(parameters, **options)
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise ValueError("trainer.optimizer adamw_8bit needs bitsandbytes: pip install gendistill[eight-bit]") from error
        return AdamW8bit(parameters, **options)

    def _train_step(self, optimizers: dict[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
        """One optimizer step over the global batch, of which this process takes its share in micro-batches."""
        config, accelerator = self.config, self.accelerator
        rows = self.data.rows_of_step(self.seed, self.step, config.batch_size)
        share = config.batch_size // accelerator.num_processes
        micro = share // config.gradient_accumulation_steps
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * self._lr_scale()
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
                for update in self.method.updates(batch, random):
                    accelerator.backward(update.loss / config.gradient_accumulation_steps)
                    for name, value in update.logs.items():
                        totals[name] = totals.get(name, 0) + value / config.gradient_accumulation_steps
                    if last:
                        optimizer = optimizers[update.optimizer]
                        parameters = self.method.trained_parameters()[update.optimizer].values()
                        norm = accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
                        if norm is not None:
                            totals[f"{update.optimizer}_gradient_norm"] = norm
                        optimizer.step()
                        optimizer.zero_grad(set_to_none=True)
        return totals

    def _lr_scale(self) -> float:
        warm = min(1.0, (self.step + 1) / (self.config.warmup_steps + 1))
        if self.config.lr_schedule == "constant":
            return warm
        progress = self.step / self.config.max_steps
        if self.config.max_minutes:
            progress = max(progress, self.seconds / 60 / self.config.max_minutes)
        return warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))

    def _finished(self) -> bool:
        config = self.config
        out_of_time = config.max_minutes is not None and self.seconds / 60 >= config.max_minutes
        out_of_patience = config.patience is not None and self.validations_since_best >= config.patience
        return self.step >= config.max_steps or self._any_process(out_of_time or out_of_patience)

    def _any_process(self, condition: bool) -> bool:
        """True on all processes where it is on one: clocks differ, and only the main process validates."""
        if self.accelerator.num_processes == 1:
            return condition
        flag = torch.tensor(float(condition), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _validate(self) -> None:
        """Judge the average; keep it aside if it is the best so far."""
        assert self.validate is not None
        if not self.accelerator.is_main_process:
            return
        validation = self.validate(self.step)
        self._write({"step": self.step, "seconds": round(self.seconds, 1), "validation": validation.figures})
        self.accelerator.log({"validation/score": validation.score}, step=self.step)
        if self.best is None or validation.score < self.best.score:
            self.best, self.best_step, self.validations_since_best = validation, self.step, 0
            state = {"step": self.step, "score": validation.score, "figures": validation.figures}
            self.checkpoints.save_best(self.method.networks.average_state(), state)
        else:
            self.validations_since_best += 1

    def _log(self, losses: dict[str, Tensor], note: Callable[[str], None]) -> None:
        values = {name: float(value) for name, value in losses.items()}
        if not all(math.isfinite(value) for value in values.values()):
            raise ValueError(
                f"training stopped at step {self.step}: {values} is not finite; the last checkpoint is kept. "
                f"Lower trainer.learning_rate ({self.config.learning_rate}) and go on with --resume"
            )
        self._write({"step": self.step, "seconds": round(self.seconds, 1), **values})
        self.accelerator.log(values, step=self.step)
        note(f"loss {values.get('loss', next(iter(values.values()))):.4f}  {self.step / self.seconds:.2f} steps/s")

    def _write(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with (self.run_folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")

    def _save(self, optimizers: dict[str, torch.optim.Optimizer]) -> None:
        if not self.accelerator.is_main_process:
            return
        weights: dict[str, Tensor] = {f"average.{name}": tensor for name, tensor in self.method.networks.averaged.items()}
        for optimizer, parameters in self.method.trained_parameters().items():
            weights.update({f"{optimizer}.{name}": tensor for name, tensor in parameters.items()})
        state = {
            "seconds": self.seconds,
            "best_step": self.best_step,
            "best": None if self.best is None else {"score": self.best.score, "figures": self.best.figures},
            "validations_since_best": self.validations_since_best,
        }
        states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
        self.checkpoints.save(self.step, weights, states, state)

    @torch.no_grad()
    def _load(self, optimizers: dict[str, torch.optim.Optimizer]) -> None:
        """Go on from the last checkpoint, or from the start where there is none yet."""
        if (last := self.checkpoints.load_last()) is None:
            return
        weights, states, state = last
        groups = {"average": self.method.networks.averaged, **self.method.trained_parameters()}
        shapes = {f"{group}.{name}": p.shape for group, of in groups.items() for name, p in of.items()}
        if shapes != {name: tensor.shape for name, tensor in weights.items()}:
            raise ValueError(
                f"out {self.run_folder} holds a run of another kind of student; takes the settings of its config.yaml to resume"
            )
        for group, parameters in groups.items():
            for name, parameter in parameters.items():
                parameter.copy_(weights[f"{group}.{name}"])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(states[name])
        self.step, self.seconds, self.best_step = state["step"], state["seconds"], state["best_step"]
        self.best = None if state["best"] is None else Validation(**state["best"])
        self.validations_since_best = state["validations_since_best"]

    def _progress(self) -> _ProgressBar:
        return _ProgressBar(self)


class _ProgressBar:
    """A bar with loss, rate and time left, on the main process."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not trainer.accelerator.is_main_process,
        )

    def __enter__(self) -> tuple[Callable[[], None], Callable[[str], None]]:
        self.bar.start()
        task = self.bar.add_task("", total=self.trainer.config.max_steps, completed=self.trainer.step)
        return (lambda: self.bar.update(task, completed=self.trainer.step)), (
            lambda text: self.bar.update(task, description=text)
        )

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
