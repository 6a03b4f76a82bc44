"""Detection of divergence: training stops before the last good checkpoint is overwritten."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

import torch
from torch import Tensor

BASELINE, RECENT = 100, 20  # logged losses: those whose median is the baseline, and the latest ones, all far above it


class LossGuard:
    """Watches the loss of each network for values that are not finite, and for values that stay far above the median.

    `watch` and `note` are called at each step and never wait for the device; their results are read when a loss is logged. The
    first network with a value that is not finite is reported as the cause: networks that learn from each other become
    non-finite together.

    Args:
        factor: a loss that stays more than this many times above its median is diverging; None disables the check.
        history: logged losses by network, of a training that is resumed; new ones are appended.
    """

    def __init__(self, factor: float | None, history: dict[str, list[float]] | None = None) -> None:
        self.factor = factor
        self.losses: dict[str, Tensor] = {}
        self.history = {} if history is None else history
        self._networks: list[str] = []
        self._first_not_finite: Tensor | None = None  # (2,): step, and index of the network

    def watch(self, step: int, network: str, loss: Tensor) -> None:
        """Record the latest loss (0-d) of a network, and whether it is the first value that is not finite."""
        self.losses[network] = loss
        self.note(step, network, loss)

    def note(self, step: int, network: str, value: Tensor) -> None:
        """Record whether an output (0-d) of a network is the first value that is not finite."""
        if network not in self._networks:
            self._networks.append(network)
        none_yet = value.new_full((2,), math.inf, dtype=torch.float32)
        first = none_yet if self._first_not_finite is None else self._first_not_finite
        current = first.new_tensor([step, self._networks.index(network)])
        self._first_not_finite = torch.where(value.isfinite() | first[0].isfinite(), first, current)

    def check(self, step: int, losses: dict[str, float], learning_rate: float) -> None:
        """Check the logged losses by network.

        Raises:
            ValueError: a loss is not finite, or is diverging.
        """
        for network, loss in losses.items():
            if not math.isfinite(loss):
                raise ValueError(self.not_finite(step, learning_rate, f"the loss of the {network}"))
            history = self.history.setdefault(network, [])
            history.append(loss)
            del history[: -BASELINE - RECENT]
            baseline = median(history[:-RECENT]) if len(history) == BASELINE + RECENT else 0.0
            if self.factor and baseline > 0 and min(history[-RECENT:]) > self.factor * baseline:
                raise ValueError(
                    f"training stopped at step {step}: the last {RECENT} logged losses of the {network} are more than "
                    f"{self.factor:g} times the median of {baseline:.3g} before, at learning rate {learning_rate:.3g}; the "
                    "last checkpoint is kept. Lower trainer.learning_rate, for example to "
                    f"{learning_rate / 5:.1g}, and continue with --resume; or raise trainer.divergence_factor"
                )

    def not_finite(self, step: int, learning_rate: float, subject: str) -> str:
        """The error message for a loss or a weight (`subject`) that is not finite.

        `step` is the step of the check; the message names the first step and network with a value that is not finite.
        """
        first_step, index = (math.inf, 0.0) if self._first_not_finite is None else self._first_not_finite.tolist()
        if first_step <= step:
            step, subject = int(first_step), f"the loss of the {self._networks[int(index)]}"
        return (
            f"training stopped at step {step}: {subject} is not finite; the learning rate was {learning_rate:.3g}, and the "
            f"last checkpoint is kept. Lower trainer.learning_rate, for example to {learning_rate / 5:.1g}, and continue with "
            "--resume"
        )


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all values are finite, with one synchronisation of the device; integer tensors are skipped."""
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    return bool(torch.stack([norm.float() for norm in torch._foreach_norm(floating)]).isfinite().all())
