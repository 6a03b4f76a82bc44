"""One optimizer step: data, losses of the method, gradients, optimizers, in this order."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gendistill.runtime.random import PerSampleRandom
from gendistill.settings.schedule import Step
from gendistill.training.divergence import LossGuard
from gendistill.training.method import Method, Update
from gendistill.training.preparation import require_gradients, require_trainable
from gendistill.training.sharding import full_tensor
from gendistill.training.snapshot import Optimizers
from gendistill.training.state import TrainState
from gendistill.training.trainer_config import TrainerConfig


class TrainingData(Protocol):
    """Training data of a method, by row."""

    def __len__(self) -> int: ...

    def rows_of_step(self, seed: int, step: int, batch_size: int) -> Tensor:
        """The rows (batch_size,) int64 of the global batch of step `step`, over all processes."""
        ...

    def batch(self, rows: Tensor, random: PerSampleRandom, device: torch.device) -> Any:
        """The batch of these rows (B,) for the method's `updates`."""
        ...

    def summary(self) -> dict[str, Any]:
        """A description of the data, for the log."""
        ...


class OptimizerStep:
    """Performs the optimizer steps of a method on its data.

    Noise, timesteps and data order are functions of (seed, step, sample), never of a global generator.
    """

    def __init__(
        self,
        method: Method,
        data: TrainingData,
        config: TrainerConfig,
        accelerator: Accelerator,
        optimizers: Optimizers,
        guard: LossGuard,
        seed: int,
    ) -> None:
        self.method, self.data, self.config, self.seed = method, data, config, seed
        self.accelerator, self.optimizers, self.guard = accelerator, optimizers, guard
        self.checked: set[str] = set()  # optimizers whose parameters are known to get gradients

    def __call__(self, state: TrainState, learning_rate: float) -> dict[str, Tensor]:
        """One step over the global batch; this process computes its part in micro-batches. Returns the logged values of the
        method, averaged over the micro-batches, and the gradient norms."""
        config, accelerator, step = self.config, self.accelerator, Step(state.step, state.fraction)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * self.method.optimizer_settings(name).learning_rate_factor
        rows = self.data.rows_of_step(self.seed, step, config.batch_size)
        part = config.batch_size // accelerator.num_processes
        micro = part // config.gradient_accumulation_steps
        totals: dict[str, Tensor] = {}
        for number in range(config.gradient_accumulation_steps):
            first = accelerator.process_index * part + number * micro
            random = PerSampleRandom(self.seed, step, first, micro)
            batch = self.data.batch(rows[first : first + micro], random, accelerator.device)
            last = number == config.gradient_accumulation_steps - 1
            with ExitStack() as stack:
                if not last:
                    for module in self.method.trained_modules().values():
                        stack.enter_context(accelerator.no_sync(module))
                stack.enter_context(accelerator.autocast())
                for update in self.method.updates(batch, step, random):
                    self._backward(update, step + 1)
                    for name, value in update.logs.items():
                        totals[name] = totals.get(name, 0) + value / config.gradient_accumulation_steps
                    for name in update.optimizers if last else ():
                        norm = self._step(name, update)
                        if norm is not None:
                            totals[f"{name}_gradient_norm"] = full_tensor(norm)
        return totals

    def _backward(self, update: Update, step: int) -> None:
        for name, value in update.watch.items():
            self.guard.note(step, name, value.detach())
        self.guard.watch(step, update.optimizers[0], update.loss.detach())
        with torch.autocast(self.accelerator.device.type, enabled=False):  # gradients keep the forward pass's dtypes
            self.accelerator.backward(update.loss / self.config.gradient_accumulation_steps)

    def _step(self, name: str, update: Update) -> Tensor | None:
        """Step one optimizer; returns the norm of its gradients before clipping."""
        parameters = self.method.trained_parameters()[name]
        if name not in self.checked:
            self._check(name, parameters, update)
        norm: Tensor | None = self.accelerator.clip_grad_norm_(parameters.values(), self.config.max_grad_norm)
        self.optimizers[name].step()
        self.optimizers[name].zero_grad(set_to_none=True)
        return norm

    def _check(self, name: str, parameters: dict[str, nn.Parameter], update: Update) -> None:
        """In the first step of an optimizer, check that its parameters get gradients."""
        require_trainable(name, parameters)
        if name == update.optimizers[0]:  # a schedule may leave out the loss of the others
            require_gradients(name, parameters)
        self.checked.add(name)
