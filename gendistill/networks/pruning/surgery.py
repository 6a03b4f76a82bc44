"""Taking channels out of a network: which matter least, and the layers without them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gendistill.networks.pruning.channels import ChannelGroup, Side, get_module, whole_norm_groups
from gendistill.networks.pruning.tracing import channel_dim

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


def _norms(weight: Tensor, layer: object, side: Side) -> np.ndarray:
    """Squared norm of each channel's weights on one side of a layer."""
    if isinstance(layer, nn.modules.conv._ConvNd) and side.side != "both" and layer.groups > 1:
        split = weight.unflatten(0, (layer.groups, -1))  # (groups, of the first, of the second, ...)
        inner = (side.side == "in") != layer.transposed
        summed = split.pow(2).flatten(3).sum(3).sum(1 if inner else 2)
        return summed.flatten().numpy(force=True)
    return weight.pow(2).movedim(_dim(layer, side), 0).reshape(weight.shape[_dim(layer, side)], -1).sum(1).numpy(force=True)


def _dim(layer: object, side: Side) -> int:
    if isinstance(layer, nn.modules.conv._ConvNd):
        return 0 if side.side == "both" else int((side.side == "in") != layer.transposed)
    if isinstance(layer, nn.Linear):
        return int(side.side == "in")
    if isinstance(layer, nn.Parameter):
        return channel_dim(layer) or 0
    return int(isinstance(layer, nn.Embedding))


def choose(scores: np.ndarray, keep: int, blocks: int = 1) -> np.ndarray:
    """The `keep` channels of the highest scores, equally many from each of `blocks` runs; in their order."""
    rows = scores.reshape(blocks, -1)
    best = np.sort(np.argsort(-rows, axis=1, kind="stable")[:, : keep // blocks], axis=1)
    return (best + np.arange(blocks)[:, None] * rows.shape[1]).ravel()


def prune(network: nn.Module, groups: Sequence[ChannelGroup], keeps: Keeps) -> None:
    """Leave only the channels `keeps[k]` of `groups[k]`, in place."""
    dropped: dict[Side, list[np.ndarray]] = defaultdict(list)
    whole: dict[str, bool] = {}
    for group, keep in zip(groups, keeps, strict=True):
        gone = np.setdiff1d(np.arange(group.size), keep)
        if not len(gone):
            continue
        for side, indices in group.members.items():
            dropped[side].append(indices[gone].ravel())
            if isinstance(layer := get_module(network, side.path), nn.GroupNorm):
                whole[side.path] = whole_norm_groups(layer, indices)
    for side, parts in dropped.items():
        _drop(network, side, np.unique(np.concatenate(parts)), whole)


@torch.no_grad()
def _drop(network: nn.Module, side: Side, gone: np.ndarray, whole: Mapping[str, bool]) -> None:
    layer = get_module(network, side.path)
    if isinstance(layer, nn.modules.conv._ConvNd):
        _drop_conv(layer, side.side, gone)
    elif isinstance(layer, nn.Linear):
        into = side.side == "in"
        keep = _kept(layer.in_features if into else layer.out_features, gone)
        _select(layer, "weight", keep, int(into))
        if into:
            layer.in_features = len(keep)
        else:
            _select(layer, "bias", keep)
            layer.out_features = len(keep)
    elif isinstance(layer, nn.Embedding):
        keep = _kept(layer.embedding_dim, gone)
        _select(layer, "weight", keep, 1)
        layer.embedding_dim = len(keep)
    elif isinstance(layer, nn.GroupNorm):
        keep = _kept(layer.num_channels, gone)
        if whole[side.path]:
            layer.num_groups = layer.num_groups * len(keep) // layer.num_channels
        _select_all(layer, keep)
        layer.num_channels = len(keep)
    elif isinstance(layer, nn.LayerNorm):
        keep = _kept(layer.normalized_shape[0], gone)
        _select_all(layer, keep)
        layer.normalized_shape = (len(keep),)
    elif isinstance(layer, nn.PReLU):
        if layer.num_parameters > 1:
            keep = _kept(layer.num_parameters, gone)
            _select_all(layer, keep)
            layer.num_parameters = len(keep)
    elif isinstance(layer, nn.Parameter):
        dim = channel_dim(layer) or 0
        parent, _, name = side.path.rpartition(".")
        owner = get_module(network, parent)
        assert isinstance(owner, nn.Module)
        _select(owner, name, _kept(layer.shape[dim], gone), dim)
    else:
        assert isinstance(layer, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm))
        keep = _kept(layer.num_features, gone)
        _select_all(layer, keep)
        layer.num_features = len(keep)


def _drop_conv(layer: nn.modules.conv._ConvNd, side: str, gone: np.ndarray) -> None:
    keep = _kept(layer.in_channels if side == "in" else layer.out_channels, gone)
    inner = (side == "in") != layer.transposed  # the dimension that a grouped convolution divides
    if side == "both":
        _select(layer, "weight", keep)
        layer.groups = len(keep)
    elif inner and layer.groups > 1:
        weight = layer.weight.unflatten(0, (layer.groups, -1))
        own = keep.reshape(layer.groups, -1) - torch.arange(layer.groups)[:, None] * weight.shape[2]
        parts = [part.index_select(1, rows.to(part.device)) for part, rows in zip(weight, own, strict=True)]
        layer.weight = nn.Parameter(torch.cat(parts), layer.weight.requires_grad)
    else:
        _select(layer, "weight", keep, int(inner))
    if side != "in":
        _select(layer, "bias", keep)
        layer.out_channels = len(keep)
    if side != "out":
        layer.in_channels = len(keep)


def _kept(size: int, gone: np.ndarray) -> Tensor:
    return torch.from_numpy(np.setdiff1d(np.arange(size), gone))


def _select_all(layer: nn.Module, keep: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        _select(layer, name, keep)


def _select(layer: nn.Module, name: str, keep: Tensor, dim: int = 0) -> None:
    old = getattr(layer, name, None)
    if isinstance(old, nn.Parameter):
        setattr(layer, name, nn.Parameter(old.index_select(dim, keep.to(old.device)).contiguous(), old.requires_grad))
    elif isinstance(old, Tensor):
        setattr(layer, name, old.index_select(dim, keep.to(old.device)))
