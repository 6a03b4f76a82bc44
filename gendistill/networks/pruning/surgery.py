"""Taking channels out of a network: which matter least, and the layers without them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gendistill.networks.pruning.channels import ChannelGroup, complete_norm_groups
from gendistill.networks.pruning.layers import CONV, LayerSide, channel_axis, count_name, count_of, get_module

Keeps = Sequence[np.ndarray]  # of each group, which channels stay


def importance(network: nn.Module, group: ChannelGroup) -> np.ndarray:
    """How much each channel of a group matters (size,): its squared L2 norm over all layers that it runs through.

    Fang et al. 2023 (DepGraph, eq. 4), the group form of Li et al. 2017. Each layer's norms are divided by their mean, so
    that a layer with large weights does not decide alone.
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
    """Squared norm of each channel's weights on one side of a layer."""
    if isinstance(layer, CONV) and side.side != "both" and layer.groups > 1:
        split = weight.unflatten(0, (layer.groups, -1))  # (groups, of the first, of the second, ...)
        inner = (side.side == "in") != layer.transposed
        summed = split.pow(2).flatten(3).sum(3).sum(1 if inner else 2)
        return summed.flatten().numpy(force=True)
    axis = channel_axis(layer, side.side)
    return weight.pow(2).movedim(axis, 0).reshape(weight.shape[axis], -1).sum(1).numpy(force=True)


def choose(scores: np.ndarray, keep: int, blocks: int = 1) -> np.ndarray:
    """The `keep` channels of the highest scores, equally many from each of `blocks` runs; in their order."""
    rows = scores.reshape(blocks, -1)
    best = np.sort(np.argsort(-rows, axis=1, kind="stable")[:, : keep // blocks], axis=1)
    return (best + np.arange(blocks)[:, None] * rows.shape[1]).ravel()


def prune(network: nn.Module, groups: Sequence[ChannelGroup], keeps: Keeps) -> None:
    """Leave only the channels `keeps[k]` of `groups[k]`, in place."""
    dropped: dict[LayerSide, list[np.ndarray]] = defaultdict(list)
    whole: dict[str, bool] = {}
    for group, keep in zip(groups, keeps, strict=True):
        gone = np.setdiff1d(np.arange(group.size), keep)
        if not len(gone):
            continue
        for side, indices in group.members.items():
            dropped[side].append(indices[gone].ravel())
            if isinstance(layer := get_module(network, side.path), nn.GroupNorm):
                whole[side.path] = complete_norm_groups(layer, indices)
    for side, parts in dropped.items():
        _drop(network, side, np.unique(np.concatenate(parts)), whole)


@torch.no_grad()
def _drop(network: nn.Module, side: LayerSide, gone: np.ndarray, whole: Mapping[str, bool]) -> None:
    layer, axis = get_module(network, side.path), channel_axis(get_module(network, side.path), side.side)
    if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
        return
    keep = torch.from_numpy(np.setdiff1d(np.arange(count_of(layer, side.side)), gone))
    if isinstance(layer, nn.Parameter):
        parent, _, name = side.path.rpartition(".")
        _select(get_module(network, parent), name, keep, axis)
        return
    if isinstance(layer, CONV) and layer.groups > 1 and axis == 1:  # which a grouped convolution divides
        weight = layer.weight.unflatten(0, (layer.groups, -1))
        own = keep.reshape(layer.groups, -1) - torch.arange(layer.groups)[:, None] * weight.shape[2]
        parts = [part.index_select(1, rows.to(part.device)) for part, rows in zip(weight, own, strict=True)]
        layer.weight = nn.Parameter(torch.cat(parts), layer.weight.requires_grad)
    else:
        _select(layer, "weight", keep, axis)
    if side.side != "in":
        for name in ("bias", "running_mean", "running_var"):
            _select(layer, name, keep)
    if isinstance(layer, nn.GroupNorm) and whole[side.path]:
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
