"""Channel dimensions of torch's layers: the attributes with channel counts and the channel axes of the weights."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

CONV = nn.modules.conv._ConvNd
BATCH_NORM, INSTANCE_NORM = nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm
COUNTS: dict[type[nn.Module], tuple[str, ...]] = {  # the attributes that determine the shape of a layer
    CONV: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    BATCH_NORM: ("num_features",),
    INSTANCE_NORM: ("num_features",),
    nn.GroupNorm: ("num_channels", "num_groups"),
    nn.LayerNorm: ("normalized_shape",),
    nn.Embedding: ("num_embeddings", "embedding_dim"),
    nn.PReLU: ("num_parameters",),
}
LAYERS = tuple(COUNTS)
UNFOLLOWED = (nn.MultiheadAttention, nn.RNNBase)  # layers whose channels are never removed


class LayerSide(NamedTuple):
    """The input ("in") or output ("out") channels of the layer at `path`; "both" where they are the same (a normalization,
    a depthwise convolution). Of a bare parameter: its axis as text."""

    path: str
    side: str


def sides(layer: object) -> tuple[str, str]:
    """The names of the input side and the output side of a layer: "both" where input and output channels are the same."""
    if isinstance(layer, CONV):
        return ("both", "both") if layer.groups == layer.out_channels > 1 else ("in", "out")
    return ("in", "out") if isinstance(layer, (nn.Linear, *UNFOLLOWED)) else ("both", "both")


def counts_of(layer: object) -> tuple[str, ...] | None:
    """The attributes with the channel counts of a layer; None for other objects."""
    return next((names for kind, names in COUNTS.items() if isinstance(layer, kind)), None)


def count_name(layer: object, side: str) -> str:
    """The attribute with the channel count of one side of a layer."""
    names = counts_of(layer)
    assert names is not None
    return names[int(isinstance(layer, nn.Embedding) or (isinstance(layer, (CONV, nn.Linear)) and side != "in"))]


def channel_axis(layer: object, side: str) -> int:
    """The axis of a layer's weight, or of a bare parameter, that indexes the channels of a side."""
    if isinstance(layer, nn.Parameter):
        return int(side)
    if isinstance(layer, CONV):
        return 0 if side == "both" else int((side == "in") != layer.transposed)
    return int(isinstance(layer, nn.Embedding) or (isinstance(layer, nn.Linear) and side == "in"))


def count_of(layer: object, side: str) -> int:
    """The number of channels of one side of a layer or bare parameter."""
    if isinstance(layer, nn.Parameter):
        return layer.shape[channel_axis(layer, side)]
    count = getattr(layer, count_name(layer, side))
    return int(count[0] if isinstance(count, tuple) else count)


def channel_dims(parameter: nn.Parameter) -> tuple[int, ...]:
    """The channel dimensions of a bare parameter (a parameter outside of known layers).

    C in (C,), (C, 1, 1), (1, C, 1, 1), in learned constants (1, C, H, W), (C, H, H), (H, H, C), and in tokens (1, N, C). Both
    in weights: (outputs, inputs), (outputs, inputs, kh, kw), (inputs, outputs, kh, kw), and with a leading 1.
    """
    shape = parameter.shape
    large = [k for k, size in enumerate(shape) if size > 1]
    if parameter.ndim == 4 and shape[0] == 1 and shape[1] > 1:
        return (1,)
    if parameter.ndim == 3 and shape[0] == 1 and shape[2] > 1:
        return (2,)
    if parameter.ndim == 3 and shape[0] == shape[1]:
        return (2,)
    if parameter.ndim == 3 and shape[1] == shape[2]:
        return (0,)
    if len(large) < 2:
        return tuple(large)
    first = int(parameter.ndim == 5 and shape[0] == 1)
    return tuple(k for k in (first, first + 1) if shape[k] > 1)


def get_module(network: nn.Module, path: str) -> Any:
    """The module or parameter at a path; the network itself for ""."""
    member: Any = network
    for name in filter(None, path.split(".")):
        member = getattr(member, name)
    return member
