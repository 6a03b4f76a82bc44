"""Training that has gone wrong is stopped while the last good checkpoint is still there."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

import torch
from torch import Tensor

BEFORE, LASTING = 100, 20  # logged losses: what is usual, and how many in a row have to be far above it


class LossGuard:
    """Watches the loss of each network: one that is not finite, and one that stays far above what was usual.

    `watch` and `note` are called at each step and never wait for the device; what they saw is read where a loss is logged
    anyway. The first that was not finite is to blame: of networks that learn from one another it spoils the others at once.

    Args:
        factor: a loss that stays so many times above its median is diverging; None lets it.
        history: logged losses by network, of a training that is resumed; they are added to it.
    """

    def __init__(self, factor: float | None, history: dict[str, list[float]] | None = None) -> None:
        self.factor = factor
        self.losses: dict[str, Tensor] = {}
        self.history = {} if history is None else history
        self._noted: list[str] = []
        self._first_bad: Tensor | None = None  # (2,): the step, and the network's number

    def watch(self, step: int, network: str, loss: Tensor) -> None:
        """Remember the newest loss (0-d), and whether it is the first that is not finite."""
        self.losses[network] = loss
        self.note(step, network, loss)

    def note(self, step: int, network: str, value: Tensor) -> None:
        """Remember whether what a network gave (0-d) is the first that is not finite."""
        if network not in self._noted:
            self._noted.append(network)
        first = value.new_full((2,), math.inf, dtype=torch.float32) if self._first_bad is None else self._first_bad
        here = first.new_tensor([step, self._noted.index(network)])
        self._first_bad = torch.where(value.isfinite() | first[0].isfinite(), first, here)

    def check(self, step: int, losses: dict[str, float], learning_rate: float) -> None:
        """Evaluator the logged losses, by network.

        Raises:
            ValueError: one of them is not finite, or has been diverging.
        """
        for network, loss in losses.items():
            if not math.isfinite(loss):
                raise ValueError(self.not_finite(step, learning_rate, f"the loss of the {network}"))
            history = self.history.setdefault(network, [])
            history.append(loss)
            del history[: -BEFORE - LASTING]
            usual = median(history[:-LASTING]) if len(history) == BEFORE + LASTING else 0.0
            if self.factor and usual > 0 and min(history[-LASTING:]) > self.factor * usual:
                raise ValueError(
                    f"training stopped at step {step}: the loss of the {network} has been more than {self.factor:g} times its "
                    f"usual {usual:.3g} for long, at learning rate {learning_rate:.3g}; the last checkpoint is kept. "
                    f"Lower trainer.learning_rate, say to {learning_rate / 5:.1g}, and go on with --resume; "
                    "or raise trainer.divergence_factor"
                )

    def not_finite(self, step: int, learning_rate: float, what: str) -> str:
        """The sentence for a loss or a weight that is not finite; `step` is where that was seen, not where it began."""
        began, number = (math.inf, 0.0) if self._first_bad is None else self._first_bad.tolist()
        if began <= step:
            step, what = int(began), f"the loss of the {self._noted[int(number)]}"
        return (
            f"training stopped at step {step}: {what} is not finite; the learning rate was {learning_rate:.3g}, and the "
            f"last checkpoint is kept. Lower trainer.learning_rate, say to {learning_rate / 5:.1g}, and go on with --resume"
        )


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number is finite: one wait for the device. Whole numbers always are."""
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    return bool(torch.stack([norm.float() for norm in torch._foreach_norm(floating)]).isfinite().all())
