"""A smaller network's weights, taken from its teacher: whole blocks by their names, and the channels that stay of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gendistill.networks.pruning.unet_channels import Channels, Run, Scores, channels, kept
from gendistill.networks.pruning.unet_importance import Importance


def teacher_name(name: str, student: Any, teacher: Any) -> str | None:
    """What a weight of the student is called in the teacher; None where the teacher has no such place.

    Levels are paired from the outside, so that the innermost go. Down blocks keep their first layers, up blocks their first
    ones and their last, which is the one that reads the level above (Kim et al. 2023, "BK-SDM", section 3.1).
    """
    place = re.match(r"(down|up)_blocks\.(\d+)\.(?:(resnets|attentions)\.(\d+)\.)?(.*)", name)
    if place is None:
        return name
    side, level, kind, layer, rest = place[1], int(place[2]), place[3], place[4], place[5]
    ours, theirs = getattr(student, f"{side}_blocks"), getattr(teacher, f"{side}_blocks")
    there = level if side == "down" else level + len(theirs) - len(ours)
    if not 0 <= there < len(theirs):
        return None
    if kind is None:
        return f"{side}_blocks.{there}.{rest}"
    j, count = int(layer), len(theirs[there].resnets)
    if side == "up":
        j = count - 1 if j == len(ours[level].resnets) - 1 else j if j < count - 1 else count
    return f"{side}_blocks.{there}.{kind}.{j}.{rest}" if j < count else None


def transfer(teacher: Any, wide: Any, student: Any, importance: Importance) -> tuple[dict[str, Tensor], list[str]]:
    """Weights for `student` from `teacher`.

    Args:
        wide: the student at the teacher's widths, on the meta device; it takes on the teacher's weights.
        student: may be on the meta device.

    Returns:
        Weights by the student's names, and the names of those for which the teacher has nothing that fits.
    """
    theirs, shapes = teacher.state_dict(), {name: weight.shape for name, weight in wide.state_dict().items()}
    names = {name: teacher_name(name, wide, teacher) for name in shapes}
    whole = {name: theirs[at] for name, at in names.items() if at in theirs and theirs[at].shape == shapes[name]}
    before, after = channels(wide), channels(student)
    scores = _scores(wide, whole, before, importance) if _widths(wide) != _widths(student) else {}
    weights: dict[str, Tensor] = {}
    for name, weight in student.state_dict().items():
        found = _sliced(name, whole, before, after, scores)
        if found is None and ".conv_shortcut." in name:
            found = _selection(name, before, after, scores, next(teacher.parameters()))
        if found is not None and found.shape == weight.shape:
            weights[name] = found
    return weights, [name for name in student.state_dict() if name not in weights]


def _widths(unet: Any) -> tuple[Any, ...]:
    return tuple(weight.shape for weight in unet.state_dict().values())


def _scores(wide: Any, whole: Mapping[str, Tensor], before: Channels, importance: Importance) -> Scores:
    """The importance of the channels of `wide` with the teacher's own weights; those that it lacks say nothing."""
    if wide.config["time_embedding_type"] != "positional":
        raise ValueError(f"time_embedding_type {wide.config['time_embedding_type']}: other widths take positional.")
    like = next(iter(whole.values()))
    weights = {name: whole.get(name, like.new_zeros(weight.shape)) for name, weight in wide.state_dict().items()}
    wide.load_state_dict(weights, assign=True)
    return importance(wide.eval(), before)


def _sliced(name: str, whole: Mapping[str, Tensor], before: Channels, after: Channels, scores: Scores) -> Tensor | None:
    if name not in whole:
        return None
    weight = whole[name].detach()
    for dim, (runs, narrow) in enumerate(zip(before.axes.get(name, ()), after.axes.get(name, ()), strict=True)):
        index = _indices(runs, narrow, before, scores)
        if index is None:
            return None
        if len(runs):
            weight = weight.index_select(dim, index.to(weight.device))
    return weight.clone()


def _indices(runs: tuple[Run, ...], narrow: tuple[Run, ...], before: Channels, scores: Scores) -> Tensor | None:
    """Those that stay of runs side by side."""
    start, stay = 0, [torch.empty(0, dtype=torch.long)]
    for run, thin in zip(runs, narrow, strict=True):
        index = kept(run, thin, scores, before.cuts)
        if index is None:
            return None
        stay.append(start + index)
        start += run.size
    return torch.cat(stay)


def _selection(name: str, before: Channels, after: Channels, scores: Scores, like: Tensor) -> Tensor | None:
    """A shortcut that the teacher does not need, its widths being the same: what comes in goes out where both have it."""
    path, _, kind = name.rpartition(".conv_shortcut.")
    if path not in before.identities:
        return None
    stream, narrow = before.identities[path], after.axes[f"{path}.conv_shortcut.weight"]
    out, into = (kept(stream, runs[0], scores, before.cuts) for runs in narrow)
    if out is None or into is None:
        return None
    if kind == "bias":
        return like.new_zeros(len(out))
    return (out[:, None] == into[None])[:, :, None, None].to(like)
