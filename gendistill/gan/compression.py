"""A smaller student of a generator that nobody listed: structural pruning to given multiply-accumulates and parameters."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gendistill.gan import counting, pruning, separable, slim
from gendistill.gan.budget import CostModel, Widths, allowed_widths, plan
from gendistill.gan.channels import ChannelGroup, channel_groups
from gendistill.gan.remembered import Remembered, remembered, set_remembered

TOLERANCE = 0.1
LEAST_CHANNELS = 4
INSTEAD = "give a smaller student class of your own instead: --student module:Class"


@dataclass(frozen=True)
class Compressed:
    """A pruned network and what it costs a sample, beside its teacher.

    Attributes:
        network: a copy, in the mode (train or eval) of the teacher, with plain weights.
        kept_whole: for each group of channels that could not be made smaller, its layer and why.
    """

    network: nn.Module
    macs: int
    parameters: int
    teacher_macs: int
    teacher_parameters: int
    kept_whole: dict[str, str]


def compress(
    network: nn.Module,
    example_inputs: Sequence[Tensor],
    *,
    factor: float | None = None,
    params: float | None = None,
    macs: float | None = None,
    seed: int = 0,
    importance: Literal["magnitude", "random"] = "magnitude",
    round_to: int = 8,
    keep: Sequence[str] = (),
    depthwise: bool = False,
) -> Compressed:
    """A copy of `network` with fewer channels, those that matter most; inputs and outputs keep their shapes.

    The groups of channels that go together are found by running the network (`gendistill.gan.channels`), their importance
    is the L2 norm of a group (Fang et al. 2023; Li et al. 2017), and how many each keeps follows from the targets
    (`gendistill.gan.budget`).

    Args:
        example_inputs: what `forward` takes, any batch; one sample of it is used.
        factor: so many times fewer multiply-accumulates AND parameters, above 1. Or give `params`, `macs` or both.
        params, macs: the number that the student is to have, of one sample.
        importance: `random` keeps random channels, by `seed`: what pruning is compared with.
        round_to: widths are multiples of this where groups are wide enough and the targets allow it, else of its half...
            Convolutions are faster so.
        keep: paths of modules that keep all their channels.
        depthwise: first replace dense convolutions by depthwise-separable ones (`gendistill.gan.separable`).

    Raises:
        ValueError: a target is none that takes channels away, the network cannot be followed, or no widths come within
            10 % of the targets; the sentence says how near they come.
    """
    teacher = (counting.parameters(network), _count(network, example_inputs))
    asked = _targets(teacher, factor, params, macs)
    if importance not in ("magnitude", "random"):
        raise ValueError(f"importance {importance}: takes magnitude or random.")
    if unknown := [path for path in keep if not _exists(network, path)]:
        raise ValueError(f"keep {unknown[0]}: the network has no such module.")
    student = copy.deepcopy(network)
    slim.fold(student)
    if depthwise:
        separable.replace_convolutions(student, keep)
    search = _Search(student, tuple(example_inputs), asked, keep, round_to)
    search.scores = _scores(student, search.groups, importance, seed)
    widths = search.run()
    pruned, cost = search.pruned(widths.kept), search.cost
    error = np.nanmax(np.abs(cost / asked - 1))
    if error > TOLERANCE:
        raise ValueError(_nearest(teacher, cost, asked, factor, search.frozen))
    return Compressed(pruned, int(cost[1]), int(cost[0]), teacher[1], teacher[0], search.frozen)


def recalibrate(network: nn.Module, batches: Iterable[Sequence[Tensor]]) -> None:
    """Measure the running statistics of all batch norms anew, as the mean over `batches` of inputs; in place.

    Statistics of the teacher's channels do not hold where channels before them are gone.
    """
    norms = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    norms = [layer for layer in norms if layer.track_running_stats]
    momenta = [layer.momentum for layer in norms]
    with counting.evaluating(network), torch.no_grad():
        for layer in norms:
            layer.reset_running_stats()
            layer.momentum = None  # torch: the cumulative mean
            layer.train()
        for batch in batches:
            network(*batch)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def _targets(teacher: tuple[int, int], factor: float | None, params: float | None, macs: float | None) -> np.ndarray:
    if factor is not None:
        if params is not None or macs is not None:
            raise ValueError(f"compress {factor:g}: comes with no other target; got params or macs too.")
        if not (math.isfinite(factor) and factor > 1):
            raise ValueError(f"compress {factor:g}: takes more than 1.")
        return np.array(teacher, float) / factor
    if params is None and macs is None:
        raise ValueError("compress: takes a factor, params or macs; got none.")
    for name, value, whole in (("params", params, teacher[0]), ("macs", macs, teacher[1])):
        if value is not None and not 0 < value < whole:
            raise ValueError(f"{name} {value:g}: takes more than 0 and less than the teacher's {whole:,}.")
    return np.array([math.nan if value is None else value for value in (params, macs)])


def _count(network: nn.Module, inputs: Sequence[Tensor]) -> int:
    try:
        count = counting.macs(network, inputs)
    except Exception as failure:
        raise ValueError(f"{type(network).__name__} does not run on the example inputs: {_short(failure)}.") from failure
    if not count:
        raise ValueError(f"{type(network).__name__} multiplies nothing that torch counts; {INSTEAD}.")
    return count


def _exists(network: nn.Module, path: str) -> bool:
    return any(name == path for name, _ in network.named_modules())


def _scores(network: nn.Module, groups: Sequence[ChannelGroup], kind: str, seed: int) -> list[np.ndarray]:
    if kind == "random":
        draws = np.random.default_rng(seed)
        return [draws.random(group.size) for group in groups]
    return [pruning.importance(network, group) for group in groups]


class _Search:
    """Plans widths, prunes by them, runs and counts the result, and corrects the plan."""

    def __init__(
        self, network: nn.Module, inputs: tuple[Tensor, ...], asked: np.ndarray, keep: Sequence[str], round_to: int
    ) -> None:
        self.network, self.inputs, self.asked, self.round_to = network, counting.one_sample(inputs), asked, round_to
        self.shapes = self._shapes(network)
        try:
            found = channel_groups(copy.deepcopy(network), inputs, keep)
        except Exception as failure:
            raise ValueError(f"{type(network).__name__} cannot be traced ({_short(failure)}); {INSTEAD}.") from failure
        outside = ("the output", "the input", "keep")
        self.frozen = {group.name: group.frozen for group in found if group.frozen and group.frozen not in outside}
        self.groups = [group for group in found if not group.frozen and group.size > 1]
        self.scores: list[np.ndarray] = []
        self.remembered: list[Remembered] = []
        self.by_module = counting.macs_by_module(network, inputs)
        self.cost = np.zeros(2)

    def run(self) -> Widths:
        """The widest rounding that meets the targets closely; else whichever comes nearest."""
        self._drop_failing()
        best: tuple[float, Widths, np.ndarray] | None = None
        multiple = self.round_to
        while multiple >= 1:
            found = self._corrected(multiple)
            if best is None or found[0] < best[0]:
                best = found
            if best[0] < TOLERANCE / 2:
                break
            multiple //= 2
        assert best is not None
        self.cost = best[2]
        return best[1]

    def _corrected(self, multiple: int) -> tuple[float, Widths, np.ndarray]:
        """Widths by the model, whose targets are moved by how far the real counts are from it."""
        model = CostModel(self.network, self.groups, self.by_module)
        allowed = [allowed_widths(group, multiple, LEAST_CHANNELS) for group in self.groups]
        asked, best = self.asked, None
        for _ in range(4):
            widths = plan(model, allowed, asked)
            pruned = self.pruned(widths.kept)
            cost = np.array([counting.parameters(pruned), counting.macs(pruned, self.inputs)], float)
            error = float(np.nanmax(np.abs(cost / self.asked - 1)))
            if best is None or error < best[0]:
                best = (error, widths, cost)
            if error < TOLERANCE / 5:
                break
            asked = self.asked * model.costs(widths.kept.astype(float)) / cost
        assert best is not None
        return best

    def pruned(self, kept: Sequence[int] | np.ndarray) -> nn.Module:
        """A copy in which group k has kept[k] channels."""
        student = copy.deepcopy(self.network)
        keeps = [pruning.choose(s, int(n), g.blocks) for s, n, g in zip(self.scores, kept, self.groups, strict=True)]
        pruning.prune(student, self.groups, keeps)
        set_remembered(student, self.remembered)
        return student

    def _drop_failing(self) -> None:
        """Keep whole the groups without whose channels the network does not run, or gives other shapes."""
        if not self.groups:
            raise ValueError(self._nothing())
        allowed = [allowed_widths(group, 1, LEAST_CHANNELS) for group in self.groups]
        thinner = [int(widths[len(widths) // 2]) if len(widths) > 1 else int(widths[0]) for widths in allowed]
        if self._failure(thinner) is None:
            return
        bad = []
        for k, group in enumerate(self.groups):
            kept = [thinner[i] if i == k else other.size for i, other in enumerate(self.groups)]
            if (why := self._failure(kept)) is not None:
                candidates = remembered(self.network, group)
                for some in (candidates, *([one] for one in candidates)):
                    before, self.remembered = self.remembered, [*self.remembered, *some]
                    if some and self._failure(kept) is None:
                        break
                    self.remembered = before
                else:
                    bad.append(k)
                    self.frozen[group.name] = why
        self.groups = [group for k, group in enumerate(self.groups) if k not in bad]
        self.scores = [scores for k, scores in enumerate(self.scores) if k not in bad]
        if not self.groups or (why := self._failure([thinner[k] for k in range(len(thinner)) if k not in bad])) is not None:
            raise ValueError(self._nothing() if not self.groups else f"compress: {why}; {INSTEAD}.")

    def _failure(self, kept: Sequence[int]) -> str | None:
        """What goes wrong with these widths: the module in which it does, and the message."""
        student = self.pruned(kept)
        try:
            return None if self._shapes(student) == self.shapes else "the output has another shape"
        except Exception as failure:
            return f"{_where(student, self.inputs)}: {_short(failure)}"

    def _shapes(self, network: nn.Module) -> list[Any]:
        with counting.evaluating(network), torch.no_grad():
            return [tuple(x.shape) if isinstance(x, Tensor) else type(x) for x in tree_leaves(network(*self.inputs))]

    def _nothing(self) -> str:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(self.frozen.items())[:3])
        return f"compress: no channels of {type(self.network).__name__} can be followed through its forward" + (
            f" ({why}); {INSTEAD}." if why else f"; {INSTEAD}."
        )


def _where(network: nn.Module, inputs: Sequence[Tensor]) -> str:
    """The innermost module that was running when the network failed."""
    running: list[str] = []
    handles = []
    for name, module in network.named_modules():
        text = f"{name or 'the network'} ({type(module).__name__})"
        handles.append(module.register_forward_pre_hook(lambda *_, text=text: running.append(text)))
        handles.append(module.register_forward_hook(lambda *_: running.pop() and None))
    try:
        with counting.evaluating(network), torch.no_grad():
            network(*inputs)
    except Exception:
        return running[-1] if running else type(network).__name__
    finally:
        for handle in handles:
            handle.remove()
    return type(network).__name__


def _short(failure: Exception) -> str:
    lines = str(failure).strip().splitlines() or [type(failure).__name__]
    return lines[0].rstrip(".")[:160]


def _nearest(
    teacher: tuple[int, int], cost: np.ndarray, asked: np.ndarray, factor: float | None, frozen: dict[str, str]
) -> str:
    what = " and ".join(
        f"{unit} {value:,.0f}" for unit, value in zip(("params", "macs"), asked, strict=True) if not math.isnan(value)
    )
    near = f"{teacher[0] / cost[0]:.3g} times fewer parameters and {teacher[1] / cost[1]:.3g} times fewer multiply-accumulates"
    whole = f"; kept whole: {', '.join(list(frozen)[:4])}" if frozen else ""
    return f"compress {what if factor is None else format(factor, 'g')}: the nearest that can be reached is {near}{whole}."
