"""A smaller student of a generator that nobody listed: structural pruning to given multiply-accumulates and parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor, nn

from gendistill.networks import counting
from gendistill.networks.pruning import pruned_architecture as slim
from gendistill.networks.pruning import separable
from gendistill.networks.pruning import surgery as pruning
from gendistill.networks.pruning.budget import CostModel, allowed_widths, plan
from gendistill.networks.pruning.cached_sizes import update_cached_sizes
from gendistill.networks.pruning.channels import ChannelGroup, channel_groups
from gendistill.networks.pruning.layers import UNFOLLOWED
from gendistill.networks.pruning.trials import prunable, short

TOLERANCE = 0.1
MIN_CHANNELS = 4
ROUND_TO = (8, 4, 2, 1)  # of widths the first that the targets allow: convolutions are faster so
INSTEAD = "give a smaller student class of your own instead: --student module:Class"


@dataclass(frozen=True)
class Compressed:
    """A pruned network and what it costs a sample, beside its teacher.

    Attributes:
        network: a copy, in the mode (train or eval) of the teacher, with plain weights.
        not_pruned: for each group of channels that could not be made smaller, its layer and why.
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
) -> Compressed:
    """A copy of `network` with fewer channels, those that matter most; inputs and outputs keep their shapes.

    The groups of channels that go together are found by running the network (`networks.pruning.channels`), their importance
    is the L2 norm of a group (Fang et al. 2023; Li et al. 2017), and how many each keeps follows from the targets
    (`networks.pruning.budget`).

    Args:
        example_inputs: what `forward` takes, any batch; one sample of it is used.
        factor: so many times fewer multiply-accumulates AND parameters, above 1. Or give `params`, `macs` or both.
        params, macs: the number that the student is to have, of one sample.
        importance: `random` keeps random channels, by `seed`: what pruning is compared with.
        keep: paths of modules that keep all their channels.
        depthwise: first replace dense convolutions by depthwise-separable ones (`gendistill.networks.pruning.separable`).

    Raises:
        ValueError: a target is none that takes channels away, the network cannot be followed, or no widths come within
            10 % of the targets; the sentence says how near they come.
    """
    teacher = (counting.parameters(network), _count(network, example_inputs))
    asked = _targets(teacher, factor, params, macs)
    if importance not in ("magnitude", "random"):
        raise ValueError(f"importance {importance}: expects magnitude or random.")
    if unknown := [path for path in keep if not _exists(network, path)]:
        raise ValueError(f"keep {unknown[0]}: the network has no such module.")
    student = slim.duplicate(network)
    slim.fold(student)
    if depthwise:
        _separate(student, example_inputs, asked, keep)
    search = _Search(student, tuple(example_inputs), asked, keep)
    search.scores = _scores(student, search.groups, importance, seed)
    found = search.run()
    if found.error > TOLERANCE:
        raise ValueError(_nearest(teacher, found.cost, asked, factor, search.frozen))
    pruned, cost = search.pruned(found.kept), found.cost
    return Compressed(pruned, int(cost[1]), int(cost[0]), teacher[1], teacher[0], search.frozen)


def recalibrate(network: nn.Module, batches: Iterable[Sequence[Tensor]]) -> None:
    """Measure the running statistics of all batch norms anew, as the mean over `batches` of inputs; in place.

    Statistics of the teacher's channels do not hold where channels before them are gone.
    """
    norms = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    norms = [layer for layer in norms if layer.track_running_stats]
    momenta = [layer.momentum for layer in norms]
    with counting.evaluating(network):
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
            raise ValueError(f"compress {factor:g}: expects more than 1.")
        return np.array(teacher, float) / factor
    if params is None and macs is None:
        raise ValueError("compress: expects a factor, params or macs; got none.")
    for name, value, whole in (("params", params, teacher[0]), ("macs", macs, teacher[1])):
        if value is not None and not 0 < value < whole:
            raise ValueError(f"{name} {value:g}: expects more than 0 and less than the teacher's {whole:,}.")
    return np.array([math.nan if value is None else float(value) for value in (params, macs)])


def _count(network: nn.Module, inputs: Sequence[Tensor]) -> int:
    try:
        count = counting.macs(network, inputs)
    except Exception as failure:
        raise ValueError(f"{type(network).__name__} does not run on the example inputs: {short(failure)}.") from failure
    if not count:
        raise ValueError(f"{type(network).__name__} multiplies nothing that torch counts; {INSTEAD}.")
    return count


def _separate(network: nn.Module, inputs: Sequence[Tensor], asked: np.ndarray, keep: Sequence[str]) -> None:
    """Make convolutions separable, the costliest first, as long as no more is saved than was asked."""
    spent = counting.macs_by_module(network, inputs)
    left = np.array([counting.parameters(network), sum(spent.values())], float)
    found = separable.replaceable(network, keep)
    for path in sorted(found, key=lambda path: -spent.get(path, 0)):
        saved = separable.saved_fraction(found[path]) * np.array([found[path].weight.numel(), spent.get(path, 0)], float)
        if not (left - saved < asked).any():
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, separable.SeparableConv2d.nearest(found[path]))
            left -= saved


def _exists(network: nn.Module, path: str) -> bool:
    return any(name == path for name, _ in network.named_modules())


def _scores(network: nn.Module, groups: Sequence[ChannelGroup], kind: str, seed: int) -> list[np.ndarray]:
    if kind == "random":
        draws = np.random.default_rng(seed)
        return [draws.random(group.size) for group in groups]
    return [pruning.importance(network, group) for group in groups]


class Attempt(NamedTuple):
    """Widths, what they cost (parameters, multiply-accumulates), and the larger relative error of that."""

    error: float
    kept: np.ndarray
    cost: np.ndarray


class _Search:
    """Plans widths, prunes by them, runs and counts the result, and corrects the plan."""

    def __init__(self, network: nn.Module, inputs: tuple[Tensor, ...], asked: np.ndarray, keep: Sequence[str]) -> None:
        self.network, self.inputs, self.asked = network, counting.one_sample(inputs), asked
        try:
            found = channel_groups(slim.duplicate(network), inputs, keep)
        except Exception as failure:
            raise ValueError(f"{type(network).__name__} cannot be traced ({short(failure)}); {INSTEAD}.") from failure
        outside = ("the output", "the input", "keep")
        self.kept = any(group.frozen == "keep" for group in found)
        self.frozen = {group.name: group.frozen for group in found if group.frozen and group.frozen not in outside}
        for path, layer in network.named_modules():
            if isinstance(layer, UNFOLLOWED):
                self.frozen.setdefault(path, f"a {type(layer).__name__}, of which no channels are removed")
        tried = prunable(network, self.inputs, [group for group in found if not group.frozen and group.size > 1])
        self.frozen |= tried.whole
        self.groups, self.notes = tried.groups, tried.notes
        if not self.groups:
            raise ValueError(self._nothing())
        self.scores: list[np.ndarray] = []
        self.by_module = counting.macs_by_module(network, inputs)

    def run(self) -> Attempt:
        """The widest rounding that meets the targets closely; else whichever comes nearest."""
        found: list[Attempt] = []
        for multiple in ROUND_TO:
            found.append(self._corrected(multiple))
            if found[-1].error < TOLERANCE / 2:
                break
        return min(found, key=lambda attempt: attempt.error)

    def _corrected(self, multiple: int) -> Attempt:
        """Widths by the model, whose targets are moved by how far the real counts are from it."""
        model = CostModel(self.network, self.groups, self.by_module)
        allowed = [allowed_widths(group, multiple, MIN_CHANNELS) for group in self.groups]
        asked, found = self.asked, list[Attempt]()
        for _ in range(4):
            kept = plan(model, allowed, asked)
            pruned = self.pruned(kept)
            cost = np.array([counting.parameters(pruned), counting.macs(pruned, self.inputs)], float)
            found.append(Attempt(float(np.nanmax(np.abs(cost / self.asked - 1))), kept, cost))
            if found[-1].error < TOLERANCE / 5:
                break
            asked = self.asked * model.costs(kept.astype(float)) / cost
        return min(found, key=lambda attempt: attempt.error)

    def pruned(self, kept: np.ndarray) -> nn.Module:
        """A copy in which group k has kept[k] channels."""
        student = slim.duplicate(self.network)
        keeps = [pruning.choose(s, int(n), g.blocks) for s, n, g in zip(self.scores, kept, self.groups, strict=True)]
        pruning.prune(student, self.groups, keeps)
        update_cached_sizes(student, self.notes)
        return student

    def _nothing(self) -> str:
        if self.kept and not self.frozen:
            return "compress: keep leaves no channels that could be removed."
        why = "; ".join(f"{name}: {reason}" for name, reason in list(self.frozen.items())[:2])
        return f"compress: no channels of {type(self.network).__name__} can be followed through its forward" + (
            f" ({why}); {INSTEAD}." if why else f"; {INSTEAD}."
        )


def _nearest(
    teacher: tuple[int, int], cost: np.ndarray, asked: np.ndarray, factor: float | None, frozen: dict[str, str]
) -> str:
    what = " and ".join(
        f"{unit} {value:,.0f}" for unit, value in zip(("params", "macs"), asked, strict=True) if not math.isnan(value)
    )
    near = f"{teacher[0] / cost[0]:.3g} times fewer parameters and {teacher[1] / cost[1]:.3g} times fewer multiply-accumulates"
    whole = [f"{name} is kept whole ({why})" for name, why in list(frozen.items())[:2]]
    reasons = f"; {', '.join(whole)}; {INSTEAD}" if whole else ""
    return f"compress {what if factor is None else format(factor, 'g')}: the nearest that can be reached is {near}{reasons}."
