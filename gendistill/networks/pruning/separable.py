"""Depthwise-separable convolutions in place of dense ones (Howard et al. 2017, MobileNets; Li et al. 2020, GAN Compression)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn


class SeparableConv2d(nn.Module):
    """A depthwise convolution (one kernel a channel) and a 1x1 convolution that mixes the channels: (B, C, H, W) as before."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] | str = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        where = {"device": device, "dtype": dtype}
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, kernel_size, stride, padding, dilation, in_channels, False, padding_mode, **where
        )
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias, **where)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))

    def settings(self) -> dict[str, Any]:
        """What the convolution that this replaces does not tell: nothing yet but that there is a bias."""
        return {"bias": self.pointwise.bias is not None}

    @classmethod
    def like(cls, dense: nn.Conv2d) -> SeparableConv2d:
        """Of the shapes of a dense convolution, its weights as they come."""
        return cls(
            dense.in_channels,
            dense.out_channels,
            dense.kernel_size,  # type: ignore[arg-type]
            stride=dense.stride,  # type: ignore[arg-type]
            padding=dense.padding,  # type: ignore[arg-type]
            dilation=dense.dilation,  # type: ignore[arg-type]
            padding_mode=dense.padding_mode,
            bias=dense.bias is not None,
            device=dense.weight.device,
            dtype=dense.weight.dtype,
        )

    @classmethod
    def from_settings(cls, dense: nn.Conv2d, settings: Any) -> SeparableConv2d:
        """What `settings` recorded, in place of the convolution of a freshly built network.

        Raises:
            ValueError: no settings of this class, or they are of another convolution.
        """
        if not isinstance(settings, Mapping) or dict(settings) != {"bias": dense.bias is not None}:
            raise ValueError(
                f"slim record separable: takes bias {str(dense.bias is not None).lower()}; got {str(settings)[:60]}."
            )
        return cls.like(dense)

    @classmethod
    def nearest(cls, dense: nn.Conv2d) -> SeparableConv2d:
        """The separable convolution nearest to a dense one in squared error of the weight.

        Each input channel's kernels are a matrix (out_channels, k * k); its best rank-1 approximation (Eckart & Young 1936)
        is the outer product of the channel's column of the 1x1 convolution and its depthwise kernel.
        """
        made = cls.like(dense)
        with torch.no_grad():
            kernels = dense.weight.double().flatten(2).transpose(0, 1)  # (in, out, k * k)
            left, size, right = torch.linalg.svd(kernels, full_matrices=False)
            root = size[:, 0].sqrt()  # shared, so that neither factor's gradient is much larger
            made.pointwise.weight.copy_((left[:, :, 0] * root[:, None]).T[:, :, None, None])
            made.depthwise.weight.copy_((right[:, 0] * root[:, None]).reshape(made.depthwise.weight.shape))
            if dense.bias is not None and made.pointwise.bias is not None:
                made.pointwise.bias.copy_(dense.bias)
        return made.requires_grad_(dense.weight.requires_grad).train(dense.training)


def saved_share(dense: nn.Conv2d) -> float:
    """The share of a dense convolution's multiply-accumulates that a separable one saves: 1 - 1 / out - 1 / k^2."""
    return 1 - 1 / dense.out_channels - 1 / (dense.kernel_size[0] * dense.kernel_size[1])


def replaceable(network: nn.Module, keep: Sequence[str] = ()) -> list[str]:
    """Paths of dense convolutions that cost less as separable ones, none of them at or below a path of `keep`."""
    found = []
    for path, layer in network.named_modules():
        kept = any(path == one or path.startswith(one + ".") for one in keep)
        if path and not kept and type(layer) is nn.Conv2d and layer.groups == 1 and saved_share(layer) > 0:
            found.append(path)
    return found


def replace_convolutions(network: nn.Module, paths: Sequence[str] | None = None) -> list[str]:
    """Replace dense convolutions by the nearest separable ones, in place.

    Args:
        paths: which; all that are `replaceable` where None.

    Returns:
        Paths of what was replaced.

    Raises:
        ValueError: a path at which there is no dense Conv2d.
    """
    paths = replaceable(network) if paths is None else list(paths)
    modules = dict(network.named_modules())
    for path in paths:
        layer = modules.get(path)
        if type(layer) is not nn.Conv2d or layer.groups != 1 or not path:
            raise ValueError(f"depthwise {path}: takes a dense Conv2d within the network; got {type(layer).__name__}.")
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, SeparableConv2d.nearest(layer))
    return paths
