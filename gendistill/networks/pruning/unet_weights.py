"""The weights of a smaller network, transferred from its teacher: blocks matched by name, channels by importance."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gendistill.networks.pruning.unet_channels import Channels, Run, Scores, channels, kept
from gendistill.networks.pruning.unet_importance import Importance


def teacher_name(name: str, student: Any, teacher: Any) -> str | None:
    """The name of the teacher's weight that corresponds to a weight of the student; None where the teacher has none.

    Levels are matched from the outside, so that the innermost ones are removed. Down blocks keep their first layers; up blocks
    keep their first layers and their last, which reads the skip connection of the level above (Kim et al. 2023, "BK-SDM",
    section 3.1).
    """
    parts = re.match(r"(down|up)_blocks\.(\d+)\.(?:(resnets|attentions)\.(\d+)\.)?(.*)", name)
    if parts is None:
        return name
    side, level, kind, layer, rest = parts[1], int(parts[2]), parts[3], parts[4], parts[5]
    student_blocks, teacher_blocks = getattr(student, f"{side}_blocks"), getattr(teacher, f"{side}_blocks")
    teacher_level = level if side == "down" else level + len(teacher_blocks) - len(student_blocks)
    if not 0 <= teacher_level < len(teacher_blocks):
        return None
    if kind is None:
        return f"{side}_blocks.{teacher_level}.{rest}"
    j, count = int(layer), len(teacher_blocks[teacher_level].resnets)
    if side == "up":
        j = count - 1 if j == len(student_blocks[level].resnets) - 1 else j if j < count - 1 else count
    return f"{side}_blocks.{teacher_level}.{kind}.{j}.{rest}" if j < count else None


def transfer(teacher: Any, wide: Any, student: Any, importance: Importance) -> tuple[dict[str, Tensor], list[str]]:
    """Weights for `student` from `teacher`.

    Args:
        wide: the student with the teacher's widths, on the meta device; the teacher's weights are loaded into it.
        student: may be on the meta device.

    Returns:
        Weights by the student's names, and the names of the student's weights without a counterpart in the teacher.
    """
    teacher_weights, shapes = teacher.state_dict(), {name: weight.shape for name, weight in wide.state_dict().items()}
    names = {name: teacher_name(name, wide, teacher) for name in shapes}
    full = {
        name: teacher_weights[source]
        for name, source in names.items()
        if source in teacher_weights and teacher_weights[source].shape == shapes[name]
    }
    before, after = channels(wide), channels(student)
    scores = _scores(wide, full, before, importance) if _widths(wide) != _widths(student) else {}
    weights: dict[str, Tensor] = {}
    for name, weight in student.state_dict().items():
        pruned = _sliced(name, full, before, after, scores)
        if pruned is None and ".conv_shortcut." in name:
            pruned = _selection(name, before, after, scores, next(teacher.parameters()))
        if pruned is not None and pruned.shape == weight.shape:
            weights[name] = pruned
    return weights, [name for name in student.state_dict() if name not in weights]


def _widths(unet: Any) -> tuple[Any, ...]:
    return tuple(weight.shape for weight in unet.state_dict().values())


def _scores(wide: Any, full: Mapping[str, Tensor], before: Channels, importance: Importance) -> Scores:
    """The importance of the channels of `wide` with the teacher's weights, in float32: half precision would change their order.

    Weights without a counterpart are zero.
    """
    if wide.config["time_embedding_type"] != "positional":
        raise ValueError(f"time_embedding_type {wide.config['time_embedding_type']}: pruning of widths expects positional.")
    like = next(iter(full.values()))
    weights = {name: full.get(name, like.new_zeros(weight.shape)).float() for name, weight in wide.state_dict().items()}
    wide.load_state_dict(weights, assign=True)
    return importance(wide.eval(), before)


def _sliced(name: str, full: Mapping[str, Tensor], before: Channels, after: Channels, scores: Scores) -> Tensor | None:
    if name not in full:
        return None
    weight = full[name].detach()
    for dim, (runs, narrow) in enumerate(zip(before.axes.get(name, ()), after.axes.get(name, ()), strict=True)):
        index = _indices(runs, narrow, before, scores)
        if index is None:
            return None
        if len(runs):
            weight = weight.index_select(dim, index.to(weight.device))
    return weight.clone()


def _indices(runs: tuple[Run, ...], narrow: tuple[Run, ...], before: Channels, scores: Scores) -> Tensor | None:
    """Kept indices along a dimension of adjacent runs; None where a run would have to grow."""
    start, indices = 0, [torch.empty(0, dtype=torch.long)]
    for run, narrow_run in zip(runs, narrow, strict=True):
        index = kept(run, narrow_run, scores, before.cuts)
        if index is None:
            return None
        indices.append(start + index)
        start += run.size
    return torch.cat(indices)


def _selection(name: str, before: Channels, after: Channels, scores: Scores, like: Tensor) -> Tensor | None:
    """Weights of a shortcut that is the identity in the teacher: a selection of the channels kept on both sides."""
    path, _, kind = name.rpartition(".conv_shortcut.")
    if path not in before.identities:
        return None
    stream, narrow = before.identities[path], after.axes[f"{path}.conv_shortcut.weight"]
    outputs, inputs = (kept(stream, runs[0], scores, before.cuts) for runs in narrow)
    if outputs is None or inputs is None:
        return None
    if kind == "bias":
        return like.new_zeros(len(outputs))
    return (outputs[:, None] == inputs[None])[:, :, None, None].to(like)
