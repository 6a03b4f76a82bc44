"""A smaller network's weights, taken from its teacher: whole blocks by their names, and the channels that stay of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gendistill.diffusion.smaller_channels import TIMESTEPS, Channels, Importance, Run, Scores, channels, kept

NUM_TIMESTEPS = 1000  # over which the embedding of the timestep is made to agree
RIDGE = 1e-6


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
        wide: the student at the teacher's widths; like the student it may be on the meta device.

    Returns:
        Weights by the student's names, and the names of those for which the teacher has nothing that fits.
    """
    theirs, shapes = teacher.state_dict(), {name: weight.shape for name, weight in wide.state_dict().items()}
    names = {name: teacher_name(name, wide, teacher) for name in shapes}
    whole = {name: theirs[at] for name, at in names.items() if at in theirs and theirs[at].shape == shapes[name]}
    before, after = channels(wide), channels(student)
    scores = importance(before, whole)
    weights: dict[str, Tensor] = {}
    for name, weight in student.state_dict().items():
        found = _sliced(name, whole, before, after, scores)
        if found is None and ".conv_shortcut." in name:
            found = _selection(name, before, after, scores, next(teacher.parameters()))
        if found is not None and found.shape == weight.shape:
            weights[name] = found
    if wide.config["block_out_channels"][0] != student.config["block_out_channels"][0]:
        weights.update(_timesteps(wide, student, whole, before, after, scores))
    return weights, [name for name in student.state_dict() if name not in weights]


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


def _timesteps(
    wide: Any, student: Any, whole: Mapping[str, Tensor], before: Channels, after: Channels, scores: Scores
) -> dict[str, Tensor]:
    """First layers that read sinusoids of the timestep.

    A narrower network has sinusoids of other frequencies. Its layer is the least-squares fit, over all timesteps, of what the
    teacher's channels that stay say.
    """
    if wide.config["time_embedding_type"] != "positional":
        kind = wide.config["time_embedding_type"]
        raise ValueError(f"time_embedding_type {kind}: another block_out_channels[0] takes positional.")
    steps = torch.arange(NUM_TIMESTEPS)
    theirs, ours = wide.time_proj(steps).double(), student.time_proj(steps).double()
    fitted: dict[str, Tensor] = {}
    for name, axes in before.axes.items():
        if name not in whole or len(axes) < 2 or [run.label for run in axes[1]] != [TIMESTEPS]:
            continue
        rows = _indices(axes[0], after.axes[name][0], before, scores)
        if rows is None:
            continue
        old = whole[name].detach().cpu().double()[rows]
        new = _least_squares(ours, theirs @ old.T).T
        fitted[name] = new.to(whole[name])
        condition = "time_embedding.cond_proj.weight"
        if name.startswith("time_embedding.") and condition in whole:
            asked = old @ whole[condition].detach().cpu().double()
            fitted[condition] = _least_squares(new, asked).to(whole[condition])
    return fitted


def _least_squares(given: Tensor, wanted: Tensor) -> Tensor:
    """X (m, k) with given (n, m) X = wanted (n, k), barely regularised: neighbouring frequencies are almost the same."""
    gram = given.T @ given
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + ridge, given.T @ wanted)
