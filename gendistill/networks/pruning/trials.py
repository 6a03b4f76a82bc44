"""Which groups of channels can really be made smaller: tried by running the network without some of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker

from gendistill.networks.counting import evaluating
from gendistill.networks.pruning import surgery as pruning
from gendistill.networks.pruning.cached_sizes import CachedSize, cached_sizes, update_cached_sizes
from gendistill.networks.pruning.channels import ChannelGroup, merged
from gendistill.networks.pruning.layers import LayerSide
from gendistill.networks.pruning.pruned_architecture import duplicate

MAX_PAIRS = 12  # of failing groups of which all pairs are tried


@dataclass(frozen=True)
class Prunable:
    """Groups that the network runs without some channels of, at any widths.

    Attributes:
        notes: numbers that modules of the network hold, to be written anew with the widths.
        whole: for each group that fails, by its layer, what went wrong.
    """

    groups: list[ChannelGroup]
    notes: list[CachedSize]
    whole: dict[str, str]


def prunable(network: nn.Module, inputs: Sequence[Tensor], groups: Sequence[ChannelGroup]) -> Prunable:
    """Try all groups at once at widths of no common ratio; where that fails, each alone.

    A group that fails alone may be one that a forward reads the size of (`c = x.shape[1]; qkv.view(b, heads, c // heads, n)`):
    tied to the others that fail, all in one ratio, it may do. What does not is kept whole.

    Args:
        inputs: of one sample.
    """
    return _Trials(network, inputs).sort(list(groups))


class _Trials:
    def __init__(self, network: nn.Module, inputs: Sequence[Tensor]) -> None:
        self.network, self.inputs = network, tuple(inputs)
        self.shapes = self._shapes(network)
        self.notes: list[CachedSize] = []

    def sort(self, groups: list[ChannelGroup]) -> Prunable:
        if self._failure(groups) is None:
            return Prunable(groups, [], {})
        good, bad, whole = [], [], {}
        for group in groups:
            if (why := self._alone(group)) is None:
                good.append(group)
            else:
                bad.append(group)
                whole[group.name] = why
        for tie in self._ties(bad):
            good.append(tied(tie))
            for group in tie:
                whole.pop(group.name, None)
        while good and (why := self._failure(good)) is not None:  # what fails together only: the last is kept whole
            whole[good.pop().name] = why
        return Prunable(good, self.notes, whole)

    def _ties(self, bad: list[ChannelGroup]) -> Iterator[list[ChannelGroup]]:
        if len(bad) <= MAX_PAIRS:
            left = list(bad)
            for one, two in itertools.combinations(bad, 2):
                if one in left and two in left and self._alone(tied([one, two])) is None:
                    left = [group for group in left if group is not one and group is not two]
                    yield [one, two]
            bad = left
        if len(bad) > 1 and self._alone(tied(bad)) is None:
            yield bad

    def _alone(self, group: ChannelGroup) -> str | None:
        if group.size // group.blocks < 2:
            return "too few channels"
        if (why := self._failure([group])) is None:
            return None
        candidates = cached_sizes(self.network, group)
        before = self.notes
        for some in (candidates, *([note] for note in candidates)):
            self.notes = [*before, *some]
            if some and self._failure([group]) is None:
                return None
        self.notes = before
        return why

    def _failure(self, groups: Sequence[ChannelGroup]) -> str | None:
        """What goes wrong without some channels: the module in which it does, and the message. Two widths are tried."""
        for turn in range(2):
            student = duplicate(self.network)
            keeps = [pruning.choose(np.zeros(g.size), _trial_width(g, k, turn), g.blocks) for k, g in enumerate(groups)]
            pruning.prune(student, groups, keeps)
            update_cached_sizes(student, self.notes)
            try:
                if self._shapes(student) != self.shapes:
                    return "the output has another shape"
            except Exception as failure:
                return f"{where(student, self.inputs)}: {short(failure)}"
        return None

    def _shapes(self, network: nn.Module) -> list[Any]:
        with evaluating(network):
            return [tuple(x.shape) if isinstance(x, Tensor) else type(x) for x in tree_leaves(network(*self.inputs))]


def _trial_width(group: ChannelGroup, k: int, turn: int) -> int:
    """A width that differs from group to group, so that what only works in equal ratios fails."""
    steps = group.size // group.blocks
    return group.blocks * (1 + (7 * k + 3 * turn + steps // 2) % (steps - 1) if steps > 1 else 1)


def tied(groups: Sequence[ChannelGroup]) -> ChannelGroup:
    """One group of several that keep the same share of their channels: runs of each, side by side."""
    free = [_across_blocks(group) for group in groups]
    size = math.gcd(*(group.size for group in free))
    members: dict[LayerSide, np.ndarray] = {}
    for group in free:
        for side, rows in merged(group, group.size // size).members.items():
            members[side] = np.concatenate([members[side], rows], 1) if side in members else rows
    return replace(free[0], members=members)


def _across_blocks(group: ChannelGroup) -> ChannelGroup:
    """One channel of each block become one, so that the blocks stay equal whatever goes."""

    def across(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(group.blocks, -1, rows.shape[1]).transpose(1, 0, 2).reshape(group.size // group.blocks, -1)

    return replace(group, members={side: across(rows) for side, rows in group.members.items()}, blocks=1)


def where(network: nn.Module, inputs: Sequence[Tensor]) -> str:
    """The innermost module that was running when the network failed."""
    with evaluating(network), ModuleTracker() as running:
        try:
            network(*inputs)
        except Exception:
            path = max(running.parents - {"Global"}, key=len, default="").partition(".")[2]
            return f"{path or 'the network'} ({type(network.get_submodule(path)).__name__})"
    return type(network).__name__


def short(failure: Exception) -> str:
    """The first line of what an exception says."""
    lines = str(failure).strip().splitlines() or [type(failure).__name__]
    return lines[0].rstrip(".")[:160]
