"""Verify channel groups: run the network with some channels of each group removed."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker

from gendistill.networks.counting import evaluating
from gendistill.networks.hints import calls_of
from gendistill.networks.pruning import surgery
from gendistill.networks.pruning.cached_sizes import CachedSize, cached_sizes, update_cached_sizes
from gendistill.networks.pruning.channels import ChannelGroup, merged
from gendistill.networks.pruning.layers import LayerSide
from gendistill.networks.pruning.pruned_architecture import duplicate

MAX_PAIRS = 12  # up to this number of failing groups, all pairs are tried


@dataclass(frozen=True)
class Prunable:
    """Groups that can be pruned to any widths.

    Attributes:
        sizes: attributes of modules that must be updated with the widths.
        not_pruned: for each group that fails, by its layer, the reason.
    """

    groups: list[ChannelGroup]
    sizes: list[CachedSize]
    not_pruned: dict[str, str]


def prunable(
    network: nn.Module,
    inputs: Sequence[Tensor],
    groups: Sequence[ChannelGroup],
    tried: Callable[[int], None] | None = None,
) -> Prunable:
    """Try all groups at once, at widths without a common ratio; if that fails, try each group alone.

    A group may fail because the forward computes one width from another (`c = x.shape[1]; qkv.view(b, heads, c // heads, n)`);
    such groups are tried again tied together, with the same pruning ratio. Groups that still fail are not pruned.

    Args:
        inputs: one sample.
        tried: called with the number of pruned networks that were tried.
    """
    return _Trials(network, inputs, tried).sort(list(groups))


class _Trials:
    def __init__(self, network: nn.Module, inputs: Sequence[Tensor], tried: Callable[[int], None] | None = None) -> None:
        self.network, self.inputs, self.tried = network, tuple(inputs), tried
        self.shapes = self._shapes(network)
        self.sizes: list[CachedSize] = []

    def sort(self, groups: list[ChannelGroup]) -> Prunable:
        if self._failure(groups) is None:
            return Prunable(groups, [], {})
        passing, failing, not_pruned = [], [], {}
        for group in groups:
            if (reason := self._alone(group)) is None:
                passing.append(group)
            else:
                failing.append(group)
                not_pruned[group.name] = reason
        for tie in self._ties(failing):
            passing.append(tied(tie))
            for group in tie:
                not_pruned.pop(group.name, None)
        while passing and (reason := self._failure(passing)) is not None:  # groups that fail only in combination
            not_pruned[passing.pop().name] = reason
        return Prunable(passing, self.sizes, not_pruned)

    def _ties(self, failing: list[ChannelGroup]) -> Iterator[list[ChannelGroup]]:
        if len(failing) <= MAX_PAIRS:
            remaining = list(failing)
            for first, second in itertools.combinations(failing, 2):
                if first in remaining and second in remaining and self._alone(tied([first, second])) is None:
                    remaining = [group for group in remaining if group is not first and group is not second]
                    yield [first, second]
            failing = remaining
        if len(failing) > 1 and self._alone(tied(failing)) is None:
            yield failing

    def _alone(self, group: ChannelGroup) -> str | None:
        if group.size // group.blocks < 2:
            return "too few channels"
        if (reason := self._failure([group])) is None:
            return None
        if sizes := self._sizes_for(group):
            self.sizes = sizes
            return None
        return reason

    def _sizes_for(self, group: ChannelGroup) -> list[CachedSize] | None:
        """The attributes that must be updated with the width of a group for the network to run; None where none help.

        All that have its size are tried at once, then one after another, as long as the network runs further with it: equal
        numbers of one module may belong to different groups.
        """
        known = {(size.path, size.name) for size in self.sizes}
        candidates = [size for size in cached_sizes(self.network, group) if (size.path, size.name) not in known]
        sizes, reached = self.sizes, self._attempt([group], self.sizes)[1]
        if candidates and self._attempt([group], [*sizes, *candidates])[0] is None:
            return [*sizes, *candidates]
        while candidates:
            attempts = [self._attempt([group], [*sizes, size]) for size in candidates]
            best = max(range(len(candidates)), key=lambda k: (attempts[k][0] is None, attempts[k][1]))
            sizes = [*sizes, candidates.pop(best)]
            if attempts[best][0] is None:
                return sizes
            if attempts[best][1] <= reached:
                return None
            reached = attempts[best][1]
        return None

    def _failure(self, groups: Sequence[ChannelGroup]) -> str | None:
        return self._attempt(groups, self.sizes)[0]

    def _attempt(self, groups: Sequence[ChannelGroup], sizes: Sequence[CachedSize]) -> tuple[str | None, int]:
        """The error of the pruned network, as module and message, None where it runs; and how many modules ran before it.

        Two widths per group are tried.
        """
        count = 0
        for turn in range(2):
            if self.tried:
                self.tried(1)
            student = duplicate(self.network)
            keeps = [surgery.choose(np.zeros(g.size), _trial_width(g, k, turn), g.blocks) for k, g in enumerate(groups)]
            surgery.prune(student, groups, keeps)
            update_cached_sizes(student, sizes)
            try:
                with calls_of(dict(student.named_modules())) as calls:
                    if self._shapes(student) != self.shapes:
                        return "the shape of the output changes", count + len(calls)
            except Exception as failure:
                return f"{where(student, self.inputs)}{sentence_end(failure)}", count + len(calls)
            count += len(calls)
        return None, count

    def _shapes(self, network: nn.Module) -> list[Any]:
        with evaluating(network):
            return [tuple(x.shape) if isinstance(x, Tensor) else type(x) for x in tree_leaves(network(*self.inputs))]


def _trial_width(group: ChannelGroup, k: int, turn: int) -> int:
    """A width with another ratio in each group, so that groups that need equal ratios fail."""
    steps = group.size // group.blocks
    return group.blocks * (1 + (7 * k + 3 * turn + steps // 2) % (steps - 1) if steps > 1 else 1)


def tied(groups: Sequence[ChannelGroup]) -> ChannelGroup:
    """Several groups as one group with a common pruning ratio; each of its channels is a run of channels of every group."""
    free = [_across_blocks(group) for group in groups]
    size = math.gcd(*(group.size for group in free))
    members: dict[LayerSide, np.ndarray] = {}
    for group in free:
        for side, rows in merged(group, group.size // size).members.items():
            members[side] = np.concatenate([members[side], rows], 1) if side in members else rows
    return replace(free[0], members=members)


def _across_blocks(group: ChannelGroup) -> ChannelGroup:
    """The group whose channels each combine one channel of every block, so that all blocks keep equal widths."""

    def across(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(group.blocks, -1, rows.shape[1]).transpose(1, 0, 2).reshape(group.size // group.blocks, -1)

    return replace(group, members={side: across(rows) for side, rows in group.members.items()}, blocks=1)


def where(network: nn.Module, inputs: Sequence[Tensor]) -> str:
    """The path and type of the innermost module that was running when the network failed."""
    with evaluating(network), ModuleTracker() as running:
        try:
            network(*inputs)
        except Exception:
            path = max(running.parents - {"Global"}, key=len, default="").partition(".")[2]
            return f"{path or 'the network'} ({type(network.get_submodule(path)).__name__})"
    return type(network).__name__


FIXED_SIZES = re.compile(r"shape '(\[.*?\])' is invalid|Provided sizes (\[.*?\]) don't multiply up")


def sentence_end(failure: Exception) -> str:
    """What follows the name of the module that failed: the sizes that its forward fixes, or the error's message."""
    if fixed := FIXED_SIZES.search(str(failure)):
        sizes = fixed[1] or fixed[2]
        return f" reshapes to the sizes {sizes} that its forward fixes; -1 instead of the channels there lets it be pruned"
    return f": {short(failure)}"


def short(failure: Exception) -> str:
    """The first line of an exception's message, at most 160 characters."""
    lines = str(failure).strip().splitlines() or [type(failure).__name__]
    return lines[0].rstrip(".")[:160]
