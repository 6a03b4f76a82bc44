"""Structured pruning of any traceable network to a budget of multiply-accumulates and parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor, nn

from gendistill.networks import counting
from gendistill.networks.pruning import pruned_architecture, separable, surgery
from gendistill.networks.pruning.budget import CostModel, allowed_widths, plan
from gendistill.networks.pruning.cached_sizes import update_cached_sizes
from gendistill.networks.pruning.channels import ChannelGroup, channel_groups
from gendistill.networks.pruning.layers import UNFOLLOWED
from gendistill.networks.pruning.trials import prunable, short

TOLERANCE = 0.1
MIN_CHANNELS = 4
ROUND_TO = (8, 4, 2, 1)  # multiples of widths, in order of preference: convolutions are faster with multiples of 8
INSTEAD = "give a smaller student class of your own instead: --student module:Class"


@dataclass(frozen=True)
class Compressed:
    """A pruned network and its costs per sample, with those of its teacher.

    Attributes:
        network: a copy, in the teacher's mode (train or eval), without parametrizations.
        not_pruned: for each channel group that could not be pruned, its layer and the reason.
    """

    network: nn.Module
    macs: int
    parameters: int
    teacher_macs: int
    teacher_parameters: int
    not_pruned: dict[str, str]


def compress(
    network: nn.Module,
    example_inputs: Sequence[Tensor],
    *,
    factor: float | None = None,
    params: float | None = None,
    macs: float | None = None,
    seed: int = 0,
    importance: Literal["magnitude", "random"] = "magnitude",
    keep: Sequence[str] = (),
    depthwise: bool = False,
    removed: Mapping[str, float] | None = None,
    tried: Callable[[int], None] | None = None,
) -> Compressed:
    """A copy of `network` with only its most important channels; inputs and outputs keep their shapes.

    Channel groups are found by tracing the network (`networks.pruning.channels`). Their importance is the L2 norm of the group
    (Fang et al. 2023; Li et al. 2017), and the width of each group follows from the targets (`networks.pruning.budget`).

    Args:
        example_inputs: arguments of `forward`, of any batch size; only the first sample is used.
        factor: above 1; multiply-accumulates AND parameters are divided by it. Alternatively give `params`, `macs` or both.
        params, macs: target of the student: parameters, and multiply-accumulates of one sample.
        importance: `random` keeps random channels, by `seed`, as a baseline.
        keep: paths of modules and bare parameters whose channels are not pruned.
        removed: residual blocks that are removed first, with the numbers that replace them, see `pruning.depth`.
        depthwise: first replace dense convolutions by depthwise-separable ones (`gendistill.networks.pruning.separable`).
        tried: called with the number of pruned networks that were tried.

    Raises:
        ValueError: a target is out of range, the network cannot be traced, or no widths come within 10 % of the targets; the
            message states the nearest costs.
    """
    teacher = (counting.parameters(network), _count(network, example_inputs))
    targets = _targets(teacher, factor, params, macs)
    if importance not in ("magnitude", "random"):
        raise ValueError(f"importance {importance}: expects magnitude or random.")
    if unknown := [path for path in keep if not _exists(network, path)]:
        raise ValueError(f"keep {unknown[0]}: the network has no such module.")
    student = pruned_architecture.duplicate(network)
    pruned_architecture.fold(student)
    pruned_architecture.remove_blocks(student, removed or {})
    if depthwise:
        _separate(student, example_inputs, targets, keep)
    search = _Search(student, tuple(example_inputs), targets, keep, tried)
    search.scores = _scores(student, search.groups, importance, seed)
    best = search.run()
    if best.error > TOLERANCE:
        raise ValueError(_nearest(teacher, best.cost, targets, factor, search.frozen))
    pruned, cost = search.pruned(best.kept), best.cost
    return Compressed(pruned, int(cost[1]), int(cost[0]), teacher[1], teacher[0], search.frozen)


def recalibrate(network: nn.Module, batches: Iterable[Sequence[Tensor]]) -> None:
    """Re-estimate the running statistics of all batch norms as the mean over `batches` of inputs, in place.

    The teacher's statistics are not valid after channels in the layers before have been removed.
    """
    norms = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    norms = [layer for layer in norms if layer.track_running_stats]
    momenta = [layer.momentum for layer in norms]
    with counting.evaluating(network):
        for layer in norms:
            layer.reset_running_stats()
            layer.momentum = None  # None: cumulative mean
            layer.train()
        for batch in batches:
            network(*batch)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def _targets(teacher: tuple[int, int], factor: float | None, params: float | None, macs: float | None) -> np.ndarray:
    if factor is not None:
        if params is not None or macs is not None:
            raise ValueError(f"compress {factor:g}: got params or macs too; expects only one kind of target.")
        if not (math.isfinite(factor) and factor > 1):
            raise ValueError(f"compress {factor:g}: expects more than 1.")
        return np.array(teacher, float) / factor
    if params is None and macs is None:
        raise ValueError("compress: expects a factor, params or macs; got none.")
    for name, value, full in (("params", params, teacher[0]), ("macs", macs, teacher[1])):
        if value is not None and not 0 < value < full:
            raise ValueError(f"{name} {value:g}: expects more than 0 and less than the teacher's {full:,}.")
    return np.array([math.nan if value is None else float(value) for value in (params, macs)])


def _count(network: nn.Module, inputs: Sequence[Tensor]) -> int:
    try:
        count = counting.macs(network, inputs)
    except Exception as failure:
        raise ValueError(f"{type(network).__name__} does not run on the example inputs: {short(failure)}.") from failure
    if not count:
        raise ValueError(f"{type(network).__name__} has no multiply-accumulates that torch counts; {INSTEAD}.")
    return count


def _separate(network: nn.Module, inputs: Sequence[Tensor], targets: np.ndarray, keep: Sequence[str]) -> None:
    """Make convolutions separable, the most expensive first, while the costs do not fall below the targets."""
    macs = counting.macs_by_module(network, inputs)
    costs = np.array([counting.parameters(network), sum(macs.values())], float)
    dense = separable.replaceable(network, keep)
    for path in sorted(dense, key=lambda path: -macs.get(path, 0)):
        saved = separable.saved_fraction(dense[path]) * np.array([dense[path].weight.numel(), macs.get(path, 0)], float)
        if not (costs - saved < targets).any():
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, separable.SeparableConv2d.nearest(dense[path]))
            costs -= saved


def _exists(network: nn.Module, path: str) -> bool:
    return path in dict(network.named_modules()) or path in dict(network.named_parameters())


def _scores(network: nn.Module, groups: Sequence[ChannelGroup], kind: str, seed: int) -> list[np.ndarray]:
    if kind == "random":
        generator = np.random.default_rng(seed)
        return [generator.random(group.size) for group in groups]
    return [surgery.importance(network, group) for group in groups]


class Attempt(NamedTuple):
    """Widths of the groups (`kept`), their cost (parameters, multiply-accumulates), and its largest relative error."""

    error: float
    kept: np.ndarray
    cost: np.ndarray


class _Search:
    """Plans widths with the cost model, prunes a copy, measures its costs, and corrects the plan."""

    def __init__(
        self,
        network: nn.Module,
        inputs: tuple[Tensor, ...],
        targets: np.ndarray,
        keep: Sequence[str],
        tried: Callable[[int], None] | None,
    ) -> None:
        self.network, self.inputs, self.targets, self.tried = network, counting.one_sample(inputs), targets, tried
        try:
            groups = channel_groups(pruned_architecture.duplicate(network), inputs, keep)
        except Exception as failure:
            raise ValueError(f"{type(network).__name__} cannot be traced ({short(failure)}); {INSTEAD}.") from failure
        intended = ("the output", "the input", "keep")
        self.has_keep = any(group.frozen == "keep" for group in groups)
        self.frozen = {group.name: group.frozen for group in groups if group.frozen and group.frozen not in intended}
        for path, layer in network.named_modules():
            if isinstance(layer, UNFOLLOWED):
                self.frozen.setdefault(path, f"the channels of a {type(layer).__name__} are never pruned")
        verified = prunable(network, self.inputs, [group for group in groups if not group.frozen and group.size > 1], tried)
        self.frozen |= verified.not_pruned
        self.groups, self.sizes = verified.groups, verified.sizes
        if not self.groups:
            raise ValueError(self._no_groups())
        self.scores: list[np.ndarray] = []
        self.by_module = counting.macs_by_module(network, inputs)

    def run(self) -> Attempt:
        """The attempt with the largest multiple of ROUND_TO that meets the targets closely, otherwise the nearest attempt."""
        attempts: list[Attempt] = []
        for multiple in ROUND_TO:
            attempts.append(self._corrected(multiple))
            if attempts[-1].error < TOLERANCE / 2:
                break
        return min(attempts, key=lambda attempt: attempt.error)

    def _corrected(self, multiple: int) -> Attempt:
        """Widths from the cost model, with the budget corrected by the ratio of modelled to measured costs."""
        model = CostModel(self.network, self.groups, self.by_module)
        allowed = [allowed_widths(group, multiple, MIN_CHANNELS) for group in self.groups]
        budget, attempts = self.targets, list[Attempt]()
        for _ in range(4):
            kept = plan(model, allowed, budget)
            pruned = self.pruned(kept)
            cost = np.array([counting.parameters(pruned), counting.macs(pruned, self.inputs)], float)
            attempts.append(Attempt(float(np.nanmax(np.abs(cost / self.targets - 1))), kept, cost))
            if attempts[-1].error < TOLERANCE / 5:
                break
            budget = self.targets * model.costs(kept.astype(float)) / cost
        return min(attempts, key=lambda attempt: attempt.error)

    def pruned(self, kept: np.ndarray) -> nn.Module:
        """A copy in which group k has kept[k] channels."""
        if self.tried:
            self.tried(1)
        student = pruned_architecture.duplicate(self.network)
        keeps = [surgery.choose(s, int(n), g.blocks) for s, n, g in zip(self.scores, kept, self.groups, strict=True)]
        surgery.prune(student, self.groups, keeps)
        update_cached_sizes(student, self.sizes)
        return student

    def _no_groups(self) -> str:
        if self.has_keep and not self.frozen:
            return "compress: keep leaves no channels that could be removed."
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(self.frozen.items())[:2])
        return f"compress: no channels of {type(self.network).__name__} can be traced through its forward" + (
            f" ({reasons}); {INSTEAD}." if reasons else f"; {INSTEAD}."
        )


def _nearest(
    teacher: tuple[int, int], cost: np.ndarray, targets: np.ndarray, factor: float | None, frozen: dict[str, str]
) -> str:
    requested = " and ".join(
        f"{unit} {value:,.0f}" for unit, value in zip(("params", "macs"), targets, strict=True) if not math.isnan(value)
    )
    near = f"{teacher[0] / cost[0]:.3g} times fewer parameters and {teacher[1] / cost[1]:.3g} times fewer multiply-accumulates"
    not_pruned = [f"{name} is not pruned ({reason})" for name, reason in list(frozen.items())[:2]]
    reasons = (
        f"; {', '.join(not_pruned)}"
        if not_pruned
        else f", as its layers have few channels (none gets fewer than {MIN_CHANNELS})"
    )
    size = requested if factor is None else format(factor, "g")
    return f"compress {size}: the nearest that can be reached is {near}{reasons}; {INSTEAD}."
