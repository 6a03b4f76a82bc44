"""Hints: which layers of a teacher a student learns to match, found by running both once, and their features on every step.

FitNets (Romero et al. 2015) match one layer by hand; here candidates are all modules whose output is an image of features,
and one of each resolution is taken, the last, paired by resolution and by how deep it lies.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gendistill.networks.counting import evaluating, one_sample

MOST = 6


@dataclass(frozen=True)
class Hint:
    """A layer of the teacher and the student's layer that is to match it; shapes (C, H, W) of one sample."""

    teacher_path: str
    student_path: str
    teacher_shape: tuple[int, int, int]
    student_shape: tuple[int, int, int]


@dataclass(frozen=True)
class Candidate:
    """A module that gives features (B, C, H, W), at `depth` in [0, 1]: the share of such modules that finished before."""

    path: str
    shape: tuple[int, int, int]
    depth: float


@contextmanager
def calls_of(modules: Mapping[str, nn.Module]) -> Iterator[list[tuple[str, Any]]]:
    """The name and the output of every call of these modules while the context is open, in the order in which they finish."""
    calls: list[tuple[str, Any]] = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: calls.append((name, output)))
        for name, module in modules.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def candidates(network: nn.Module, inputs: Sequence[Tensor]) -> list[Candidate]:
    """Modules with 4-D outputs in the order in which they finish, the network itself and what it gives left out."""
    # what a spectral norm gives is a weight, in four dimensions too
    modules = {path: one for path, one in network.named_modules() if path and "parametrizations" not in path.split(".")}
    with evaluating(network), calls_of(modules) as calls:
        given = network(*one_sample(inputs))
    output = given.shape[1:] if isinstance(given, Tensor) else None
    seen = [(path, maps.shape[1:]) for path, maps in calls if isinstance(maps, Tensor) and maps.ndim == 4]
    while seen and seen[-1][1] == output:  # the image itself: what generates it, and an activation after
        seen.pop()
    once = {path: (k, shape) for k, (path, shape) in enumerate(seen)}  # a module that runs often counts where it ends
    most = max(len(seen) - 1, 1)
    found = sorted(once.items(), key=lambda item: item[1][0])
    return [Candidate(path, tuple(shape), k / most) for path, (k, shape) in found]  # type: ignore[arg-type]


def match(
    teacher: nn.Module,
    student: nn.Module,
    inputs: Sequence[Tensor],
    chosen: Mapping[str, str] | None = None,
    most: int = MOST,
) -> list[Hint]:
    """Pairs of layers, in the order of the teacher's depth.

    By default the last block of each run of blocks at one resolution, at most `most` spread over the depth, each with the
    student's module of the same path and resolution (a pruned student has them), else with the student's last module of
    the same resolution whose depth is nearest.

    Args:
        inputs: what both networks' forward takes; one sample is used.
        chosen: teacher's path to student's path, in place of all that.

    Raises:
        ValueError: a path that is not known, or gives no features; or no two layers have a resolution in common.
    """
    theirs, ours = candidates(teacher, inputs), candidates(student, inputs)
    if chosen is not None:
        return [_chosen(theirs, ours, teacher_path, student_path) for teacher_path, student_path in chosen.items()]
    hints = []
    for candidate in _ends(teacher, theirs):
        same = [one for one in ours if one.shape[1:] == candidate.shape[1:]]
        by_path = [one for one in same if one.path == candidate.path]
        ends = by_path or [one for one in _ends(student, ours) if one in same] or same
        if ends:
            best = min(ends, key=lambda one: abs(one.depth - candidate.depth))
            hints.append(Hint(candidate.path, best.path, candidate.shape, best.shape))
    if not hints:
        sizes = " and ".join(_sizes(one) for one in (theirs, ours))
        raise ValueError(f"hints: teacher and student have no layers of one resolution in common; they have {sizes}.")
    return _spread(hints, most)


def _sizes(some: Sequence[Candidate]) -> str:
    return ", ".join(dict.fromkeys(f"{one.shape[1]}x{one.shape[2]}" for one in some)) or "none"


def _ends(network: nn.Module, some: Sequence[Candidate]) -> list[Candidate]:
    """The last block of each run of blocks of one resolution; the last layer of a run that has no blocks."""
    blocks = _blocks(network, some)
    ends, run = [], []
    for one, after in zip(blocks, (*blocks[1:], None), strict=True):
        run.append(one)
        if after is None or after.shape[1:] != one.shape[1:]:
            composite = [block for block in run if any(True for _ in network.get_submodule(block.path).children())]
            ends.append((composite or run)[-1])
            run = []
    return ends


def _blocks(network: nn.Module, some: Sequence[Candidate]) -> list[Candidate]:
    """Outermost candidates: a module that holds several stages is opened, a block is not.

    Stages: two resolutions in a Sequential, three in any other (an upsampling block has two).
    """
    found = []
    opened: list[str] = [""]
    for one in sorted(some, key=lambda one: one.path.count(".")):
        resolutions = {inner.shape[1:] for inner in some if inner.path == one.path or inner.path.startswith(one.path + ".")}
        stages = 2 if isinstance(network.get_submodule(one.path), nn.Sequential) else 3
        above = [path for path in _parents(one.path) if any(other.path == path for other in some)]
        if all(path in opened for path in above):
            if len(resolutions) >= stages:
                opened.append(one.path)
            else:
                found.append(one)
    return sorted(found, key=lambda one: one.depth)


def _parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:k]) for k in range(1, len(parts))]


def _spread(hints: list[Hint], most: int) -> list[Hint]:
    if len(hints) <= most:
        return hints
    places = sorted({round(k * (len(hints) - 1) / max(most - 1, 1)) for k in range(most)})
    return [hints[place] for place in places]


def _chosen(theirs: Sequence[Candidate], ours: Sequence[Candidate], teacher_path: str, student_path: str) -> Hint:
    one, other = _find(theirs, teacher_path, "teacher"), _find(ours, student_path, "student")
    if one.shape[1:] != other.shape[1:]:
        shapes = f"{one.shape[1]}x{one.shape[2]} and {other.shape[1]}x{other.shape[2]}"
        raise ValueError(f"hints {teacher_path}={student_path}: expects layers of one resolution; got {shapes}.")
    return Hint(teacher_path, student_path, one.shape, other.shape)


def _find(some: Sequence[Candidate], path: str, whose: str) -> Candidate:
    known = {one.path: one for one in some}
    if path not in known:
        raise ValueError(
            f"hints {path}: the {whose} has no layer of this path with features (B, C, H, W){_nearest(path, known)}."
        )
    return known[path]


def _nearest(path: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(path, [name for name in known if name], 1, cutoff=0)
    return f"; the nearest is {close[0]}" if close else ""


def describe(hints: Sequence[Hint]) -> str:
    """A table of the pairs for people: resolution, channels and paths of both."""
    rows = [("resolution", "teacher", "channels", "student", "channels")]
    for hint in hints:
        channels, height, width = hint.teacher_shape
        own = str(hint.student_shape[0])
        rows.append((f"{height}x{width}", hint.teacher_path, str(channels), hint.student_path, own))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


class Regressors(nn.Module):
    """For each hint a 1x1 convolution from the student's channels to the teacher's (Romero et al. 2015, eq. 3).

    Identity where the channels are as many. They learn with the student and are thrown away after.
    """

    def __init__(self, hints: Sequence[Hint]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Identity()
            if hint.student_shape[0] == hint.teacher_shape[0]
            else nn.Conv2d(hint.student_shape[0], hint.teacher_shape[0], 1)
            for hint in hints
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The student's features, one (B, C, H, W) a hint, as the teacher's channels."""
        return [layer(one) for layer, one in zip(self.layers, features, strict=True)]


def tap(network: nn.Module, paths: Sequence[str], *inputs: Any) -> tuple[Any, list[Tensor]]:
    """What a network gives, and the outputs of its modules at `paths`, in their order, with their gradients.

    Args:
        network: as it is called. A wrapped one (DistributedDataParallel, torch.compile) is read within its wrapping.

    Raises:
        ValueError: a path at which there is no module.
    """
    modules = dict(_unwrapped(network).named_modules())
    for path in paths:
        if path not in modules:
            raise ValueError(f"hints {path}: the network has no such module{_nearest(path, modules)}.")
    with calls_of({path: modules[path] for path in paths}) as calls:
        output = network(*inputs)
    found = dict(calls)
    return output, [found[path] for path in paths]


def _unwrapped(network: nn.Module) -> nn.Module:
    while isinstance(network, (nn.parallel.DistributedDataParallel, nn.DataParallel)) or hasattr(network, "_orig_mod"):
        network = network.module if isinstance(getattr(network, "module", None), nn.Module) else network._orig_mod  # type: ignore[assignment]
    return network
