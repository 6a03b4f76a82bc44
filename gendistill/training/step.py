"""One optimizer step: data, losses of the method, gradients, optimizers, in this order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from gendistill.runtime.random import PerSampleRandom
from gendistill.settings.schedule import Step
from gendistill.training.divergence import LossGuard
from gendistill.training.method import Method, Update
from gendistill.training.mixed_precision import autocast
from gendistill.training.preparation import require_gradients, require_trainable
from gendistill.training.processes import adds_up_gradients, equal_buffers, mean_gradients
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
        self.adds_up = adds_up_gradients(config, accelerator)
        self.checked: set[str] = set()  # optimizers whose parameters are known to get gradients

    def __call__(self, state: TrainState, learning_rate: float) -> tuple[dict[str, Tensor], set[str]]:
        """One step over the global batch; this process computes its part in micro-batches.

        All micro-batches pass through an update before its optimizers step, and before the next update is computed, so that
        each of several updates (of a discriminator and its student, for example) is that of the unsplit batch.

        Returns:
            The logged values of the method, averaged over the micro-batches, and the gradient norms; and the names of the
            optimizers that skipped a step, since their gradients overflowed float16.
        """
        config, accelerator, scaler = self.config, self.accelerator, self.accelerator.scaler
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * self.method.optimizer_settings(name).learning_rate_factor
        parts = self._parts(Step(state.step, state.fraction))
        totals: dict[str, Tensor] = {}
        stepped: set[str] = set()  # since the last update of the loss scale
        skipped: set[str] = set()
        while True:
            for number, (updates, random) in enumerate(parts):
                with self._synchronised_if(number == len(parts) - 1), self.method.micro_batch(random):
                    with autocast(config.mixed_precision, accelerator.device):
                        update = next(updates, None)
                    if update is None:
                        continue
                    if stepped.intersection(update.optimizers):  # an optimizer unscales its gradients once for each scale
                        scaler.update()
                        stepped.clear()
                    self._backward(update, state.step + 1)
                for name, value in update.logs.items():
                    totals[name] = totals.get(name, 0) + value / len(parts)
            if update is None:
                break
            for name in update.optimizers:
                norm = self._step(name, update)
                if norm is not None:
                    totals[f"{name}_gradient_norm"] = norm
                if scaler is not None:
                    stepped.add(name)
                    if norm is not None and not norm.isfinite():
                        skipped.add(name)
        if scaler is not None:
            scaler.update()
        if self.adds_up:
            equal_buffers(self.method.buffers().values())
        return totals, skipped

    def _parts(self, step: Step) -> list[tuple[Iterator[Update], PerSampleRandom]]:
        """The updates of each micro-batch of this process, and its random numbers."""
        config, accelerator = self.config, self.accelerator
        rows = self.data.rows_of_step(self.seed, step, config.batch_size)
        part = config.batch_size // accelerator.num_processes
        micro = part // config.gradient_accumulation_steps
        parts = []
        for first in range(accelerator.process_index * part, (accelerator.process_index + 1) * part, micro):
            random = PerSampleRandom(self.seed, step, first, micro)
            batch = self.data.batch(rows[first : first + micro], random, accelerator.device)
            parts.append((iter(self.method.updates(batch, step, random)), random))
        return parts

    @contextmanager
    def _synchronised_if(self, last: bool) -> Iterator[None]:
        """FSDP adds up the gradients of all processes after the last micro-batch alone; for DDP see `mean_gradients`."""
        with ExitStack() as stack:
            for module in () if last else self.method.trained_modules().values():
                stack.enter_context(self.accelerator.no_sync(module))
            yield

    def _backward(self, update: Update, step: int) -> None:
        for name, value in update.watch.items():
            self.guard.note(step, name, value.detach())
        self.guard.watch(step, update.optimizers[0], update.loss.detach())
        self.accelerator.backward(update.loss / self.config.gradient_accumulation_steps)

    def _step(self, name: str, update: Update) -> Tensor | None:
        """Step one optimizer; returns the norm of its gradients before clipping."""
        parameters, optimizer = self.method.trained_parameters()[name], self.optimizers[name]
        has_gradients = any(parameter.grad is not None for parameter in parameters.values())
        scaler = self.accelerator.scaler if has_gradients else None  # a scaler does not step without
        if name not in self.checked:
            self._check(name, parameters, update)
        if self.adds_up:
            mean_gradients(parameters.values())
        if scaler is not None:
            scaler.unscale_(optimizer)
        norm = self._clip(parameters.values())
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)  # skips it where a gradient is not finite
        optimizer.zero_grad(set_to_none=True)
        return None if norm is None else full_tensor(norm)

    def _clip(self, parameters: Iterable[nn.Parameter]) -> Tensor | None:
        """Clip the gradients of one network; returns their norm. accelerate's own function is for one sharded module."""
        sharded = self.accelerator.distributed_type == DistributedType.FSDP
        clip: Callable[..., Any] = nn.utils.clip_grad_norm_ if sharded else self.accelerator.clip_grad_norm_
        norm: Tensor | None = clip(parameters, self.config.max_grad_norm)
        return norm

    def _check(self, name: str, parameters: dict[str, nn.Parameter], update: Update) -> None:
        """In the first step of an optimizer, check that its parameters get gradients."""
        require_trainable(name, parameters)
        if name == update.optimizers[0]:  # a schedule may leave out the loss of the others
            require_gradients(name, parameters)
        self.checked.add(name)
