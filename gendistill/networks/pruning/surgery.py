"""Structured pruning: the importance of channels, the choice of the kept ones, and the removal of the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gendistill.networks.pruning.channels import ChannelGroup, complete_norm_groups
from gendistill.networks.pruning.layers import CONV, LayerSide, channel_axis, count_name, count_of, get_module

Keeps = Sequence[np.ndarray]  # for each group, the indices of the kept channels


def importance(network: nn.Module, group: ChannelGroup) -> np.ndarray:
    """The importance (size,) of each channel of a group: its squared L2 norm, summed over all coupled layers.

    Fang et al. 2023 (DepGraph, eq. 4), the group form of Li et al. 2017. The norms of each layer are divided by their mean,
    so that a layer with large weights does not dominate.
    """
    total = np.zeros(group.size)
    for side, indices in group.members.items():
        layer = get_module(network, side.path)
        weight = layer if isinstance(layer, nn.Parameter) else getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or isinstance(layer, nn.PReLU):
            continue
        norms = _norms(weight.detach().double(), layer, side)[indices].sum(1)
        total += norms / max(norms.mean(), 1e-30)
    return total


def _norms(weight: Tensor, layer: object, side: LayerSide) -> np.ndarray:
    """The squared L2 norm of the weights of each channel on one side of a layer."""
    if isinstance(layer, CONV) and side.side != "both" and layer.groups > 1:
        split = weight.unflatten(0, (layer.groups, -1))  # (groups, first dimension per group, second dimension, ...)
        inner = (side.side == "in") != layer.transposed
        summed = split.pow(2).flatten(3).sum(3).sum(1 if inner else 2)
        return summed.flatten().numpy(force=True)
    axis = channel_axis(layer, side.side)
    return weight.pow(2).movedim(axis, 0).reshape(weight.shape[axis], -1).sum(1).numpy(force=True)


def choose(scores: np.ndarray, keep: int, blocks: int = 1) -> np.ndarray:
    """The indices, ascending, of the `keep` channels with the highest scores, the same number from each of `blocks` runs."""
    rows = scores.reshape(blocks, -1)
    best = np.sort(np.argsort(-rows, axis=1, kind="stable")[:, : keep // blocks], axis=1)
    return (best + np.arange(blocks)[:, None] * rows.shape[1]).ravel()


def prune(network: nn.Module, groups: Sequence[ChannelGroup], keeps: Keeps) -> None:
    """Remove all channels of `groups[k]` except `keeps[k]`, in place."""
    removed: dict[LayerSide, list[np.ndarray]] = defaultdict(list)
    complete: dict[str, bool] = {}
    for group, keep in zip(groups, keeps, strict=True):
        pruned = np.setdiff1d(np.arange(group.size), keep)
        if not len(pruned):
            continue
        for side, indices in group.members.items():
            removed[side].append(indices[pruned].ravel())
            if isinstance(layer := get_module(network, side.path), nn.GroupNorm):
                complete[side.path] = complete_norm_groups(layer, indices)
    for side, parts in removed.items():
        _remove(network, side, np.unique(np.concatenate(parts)), complete)


@torch.no_grad()
def _remove(network: nn.Module, side: LayerSide, removed: np.ndarray, complete: Mapping[str, bool]) -> None:
    layer, axis = get_module(network, side.path), channel_axis(get_module(network, side.path), side.side)
    if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
        return
    keep = torch.from_numpy(np.setdiff1d(np.arange(count_of(layer, side.side)), removed))
    if isinstance(layer, nn.Parameter):
        parent, _, name = side.path.rpartition(".")
        _select(get_module(network, parent), name, keep, axis)
        return
    if isinstance(layer, CONV) and layer.groups > 1 and axis == 1:  # the axis that a grouped convolution divides
        weight = layer.weight.unflatten(0, (layer.groups, -1))
        in_groups = keep.reshape(layer.groups, -1) - torch.arange(layer.groups)[:, None] * weight.shape[2]
        parts = [part.index_select(1, rows.to(part.device)) for part, rows in zip(weight, in_groups, strict=True)]
        layer.weight = nn.Parameter(torch.cat(parts), layer.weight.requires_grad)
    else:
        _select(layer, "weight", keep, axis)
    if side.side != "in":
        for name in ("bias", "running_mean", "running_var"):
            _select(layer, name, keep)
    if isinstance(layer, nn.GroupNorm) and complete[side.path]:
        layer.num_groups = layer.num_groups * len(keep) // layer.num_channels
    if isinstance(layer, CONV) and side.side == "both":  # depthwise
        layer.in_channels = layer.groups = len(keep)
    setattr(layer, count_name(layer, side.side), (len(keep),) if isinstance(layer, nn.LayerNorm) else len(keep))


def _select(owner: object, name: str, keep: Tensor, axis: int = 0) -> None:
    old = getattr(owner, name, None)
    if isinstance(old, nn.Parameter):
        setattr(owner, name, nn.Parameter(old.index_select(axis, keep.to(old.device)).contiguous(), old.requires_grad))
    elif isinstance(old, Tensor):
        setattr(owner, name, old.index_select(axis, keep.to(old.device)))
