"""Hints (FitNets): pairs of a teacher layer and the student layer that learns to match its feature maps.

Romero et al. 2015 choose one pair by hand. Here all modules whose output is a feature map are candidates; the last one of
each resolution is chosen and paired by resolution and relative depth.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gendistill.networks.counting import evaluating, one_sample

MAX_HINTS = 6


@dataclass(frozen=True)
class Hint:
    """A layer of the teacher and the layer of the student that learns to match it; shapes (C, H, W) of one sample."""

    teacher_path: str
    student_path: str
    teacher_shape: tuple[int, int, int]
    student_shape: tuple[int, int, int]


@dataclass(frozen=True)
class Candidate:
    """A module with feature maps (B, C, H, W) as output. `depth` in [0, 1] is its relative position in execution order."""

    path: str
    shape: tuple[int, int, int]
    depth: float


@contextmanager
def calls_of(modules: Mapping[str, nn.Module]) -> Iterator[list[tuple[str, Any]]]:
    """Record the name and the output of every call of these modules while the context is open, in the order of completion."""
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
    """Modules with feature maps (4-D outputs) in the order of completion, without the layers that produce the image itself."""
    # a parametrization (spectral norm) outputs a weight, which may be 4-D too
    modules = {path: module for path, module in network.named_modules() if path and "parametrizations" not in path.split(".")}
    with evaluating(network), calls_of(modules) as calls:
        result = network(*one_sample(inputs))
    image_shape = result.shape[1:] if isinstance(result, Tensor) else None
    maps = [(path, output.shape[1:]) for path, output in calls if isinstance(output, Tensor) and output.ndim == 4]
    while maps and maps[-1][1] == image_shape:  # the last convolution and the activation after it
        maps.pop()
    last_calls = {path: (k, shape) for k, (path, shape) in enumerate(maps)}  # of a module that runs several times
    deepest = max(len(maps) - 1, 1)
    ordered = sorted(last_calls.items(), key=lambda item: item[1][0])
    return [Candidate(path, tuple(shape), k / deepest) for path, (k, shape) in ordered]  # type: ignore[arg-type]


def match(
    teacher: nn.Module,
    student: nn.Module,
    inputs: Sequence[Tensor],
    chosen: Mapping[str, str] | None = None,
    max_hints: int = MAX_HINTS,
) -> list[Hint]:
    """Pairs of layers, ordered by the depth of the teacher's layer.

    By default the teacher's layers are the last block of each run of blocks at one resolution, at most `max_hints` spread
    over the depth. Each is paired with the student's module of the same path and resolution (a pruned student has it),
    otherwise with the student's last module of the same resolution at the nearest relative depth.

    Args:
        inputs: the arguments of both networks' `forward`; only the first sample is used.
        chosen: pairs to use instead: path in the teacher to path in the student.

    Raises:
        ValueError: a path does not exist or has no feature maps; or no two layers have the same resolution.
    """
    teacher_layers, student_layers = candidates(teacher, inputs), candidates(student, inputs)
    if chosen is not None:
        return [_chosen(teacher_layers, student_layers, *paths) for paths in chosen.items()]
    hints = []
    for candidate in _ends(teacher, teacher_layers):
        same = [layer for layer in student_layers if layer.shape[1:] == candidate.shape[1:]]
        by_path = [layer for layer in same if layer.path == candidate.path]
        ends = by_path or [layer for layer in _ends(student, student_layers) if layer in same] or same
        if ends:
            best = min(ends, key=lambda layer: abs(layer.depth - candidate.depth))
            hints.append(Hint(candidate.path, best.path, candidate.shape, best.shape))
    if not hints:
        sizes = " and ".join(_sizes(layers) for layers in (teacher_layers, student_layers))
        raise ValueError(f"hints: teacher and student have no layers of the same resolution; they have {sizes}.")
    return _spread(hints, max_hints)


def _sizes(layers: Sequence[Candidate]) -> str:
    return ", ".join(dict.fromkeys(f"{layer.shape[1]}x{layer.shape[2]}" for layer in layers)) or "none"


def _ends(network: nn.Module, layers: Sequence[Candidate]) -> list[Candidate]:
    """The last block of each run of blocks at one resolution; the last layer of a run without blocks."""
    blocks = _blocks(network, layers)
    ends, run = [], []
    for block, following in zip(blocks, (*blocks[1:], None), strict=True):
        run.append(block)
        if following is None or following.shape[1:] != block.shape[1:]:
            composite = [member for member in run if any(True for _ in network.get_submodule(member.path).children())]
            ends.append((composite or run)[-1])
            run = []
    return ends


def _blocks(network: nn.Module, layers: Sequence[Candidate]) -> list[Candidate]:
    """The outermost candidates, in order of depth; a module with several stages is replaced by its children.

    A Sequential has several stages where it has two resolutions, other modules where they have three (an upsampling block
    has two).
    """
    blocks = []
    opened: list[str] = [""]
    for layer in sorted(layers, key=lambda layer: layer.path.count(".")):
        inner = [other for other in layers if other.path == layer.path or other.path.startswith(layer.path + ".")]
        resolutions = {other.shape[1:] for other in inner}
        stages = 2 if isinstance(network.get_submodule(layer.path), nn.Sequential) else 3
        above = [path for path in _parents(layer.path) if any(other.path == path for other in layers)]
        if all(path in opened for path in above):
            if len(resolutions) >= stages:
                opened.append(layer.path)
            else:
                blocks.append(layer)
    return sorted(blocks, key=lambda block: block.depth)


def _parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:k]) for k in range(1, len(parts))]


def _spread(hints: list[Hint], max_hints: int) -> list[Hint]:
    if len(hints) <= max_hints:
        return hints
    positions = sorted({round(k * (len(hints) - 1) / max(max_hints - 1, 1)) for k in range(max_hints)})
    return [hints[position] for position in positions]


def _chosen(
    teacher_layers: Sequence[Candidate], student_layers: Sequence[Candidate], teacher_path: str, student_path: str
) -> Hint:
    teacher = _find(teacher_layers, teacher_path, "teacher")
    student = _find(student_layers, student_path, "student")
    if teacher.shape[1:] != student.shape[1:]:
        shapes = f"{_sizes([teacher])} and {_sizes([student])}"
        raise ValueError(f"hints {teacher_path}={student_path}: expects layers of the same resolution; got {shapes}.")
    return Hint(teacher_path, student_path, teacher.shape, student.shape)


def _find(layers: Sequence[Candidate], path: str, role: str) -> Candidate:
    by_path = {layer.path: layer for layer in layers}
    if path not in by_path:
        raise ValueError(
            f"hints {path}: the {role} has no layer at this path with features (B, C, H, W){_nearest(path, by_path)}."
        )
    return by_path[path]


def _nearest(path: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(path, [name for name in known if name], 1, cutoff=0)
    return f"; the nearest is {close[0]}" if close else ""


def describe(hints: Sequence[Hint]) -> str:
    """The pairs as a table of text: resolution, and path and channels in both networks."""
    rows = [("resolution", "teacher", "channels", "student", "channels")]
    for hint in hints:
        channels, height, width = hint.teacher_shape
        student_channels = str(hint.student_shape[0])
        rows.append((f"{height}x{width}", hint.teacher_path, str(channels), hint.student_path, student_channels))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


class Regressors(nn.Module):
    """For each hint a 1x1 convolution from the student's channels to the teacher's (Romero et al. 2015, eq. 3).

    The identity where the numbers of channels are equal. The regressors are trained with the student and discarded afterwards.
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
        """Map the student's features, one tensor (B, C, H, W) per hint, to the teacher's channels."""
        return [layer(maps) for layer, maps in zip(self.layers, features, strict=True)]


def tap(network: nn.Module, paths: Sequence[str], *inputs: Any) -> tuple[Any, list[Tensor]]:
    """The output of a network, and the outputs of its modules at `paths` in the same order, with gradients.

    Args:
        network: may be wrapped by DistributedDataParallel, DataParallel or torch.compile; paths are those of the module inside.

    Raises:
        ValueError: there is no module at a path.
    """
    modules = dict(_unwrapped(network).named_modules())
    for path in paths:
        if path not in modules:
            raise ValueError(f"hints {path}: the network has no such module{_nearest(path, modules)}.")
    with calls_of({path: modules[path] for path in paths}) as calls:
        output = network(*inputs)
    features = dict(calls)
    return output, [features[path] for path in paths]


def _unwrapped(network: nn.Module) -> nn.Module:
    while isinstance(network, (nn.parallel.DistributedDataParallel, nn.DataParallel)) or hasattr(network, "_orig_mod"):
        network = network.module if isinstance(getattr(network, "module", None), nn.Module) else network._orig_mod  # type: ignore[assignment]
    return network
