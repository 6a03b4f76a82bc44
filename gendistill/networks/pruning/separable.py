"""Depthwise-separable convolutions in place of dense ones (Howard et al. 2017, MobileNets; Li et al. 2020, GAN Compression)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SeparableConv2d(nn.Module):
    """A depthwise convolution (one kernel a channel) and a 1x1 convolution that mixes the channels: (B, C, H, W) as before.

    Args:
        dense: the convolution whose shapes it takes; the weights come as torch makes them.
    """

    def __init__(self, dense: nn.Conv2d) -> None:
        super().__init__()
        where = {"device": dense.weight.device, "dtype": dense.weight.dtype}
        shape = (dense.kernel_size, dense.stride, dense.padding, dense.dilation)
        width, mode = dense.in_channels, dense.padding_mode
        self.depthwise = nn.Conv2d(width, width, *shape, width, False, mode, **where)  # type: ignore[arg-type]
        self.pointwise = nn.Conv2d(width, dense.out_channels, 1, bias=dense.bias is not None, **where)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))

    @classmethod
    def nearest(cls, dense: nn.Conv2d) -> SeparableConv2d:
        """The separable convolution nearest to a dense one in squared error of the weight.

        Each input channel's kernels are a matrix (out_channels, k * k); its best rank-1 approximation (Eckart & Young 1936)
        is the outer product of the channel's column of the 1x1 convolution and its depthwise kernel.
        """
        made = cls(dense)
        with torch.no_grad():
            kernels = dense.weight.double().flatten(2).transpose(0, 1)  # (in, out, k * k)
            left, size, right = torch.linalg.svd(kernels, full_matrices=False)
            root = size[:, 0].sqrt()  # shared, so that neither factor's gradient is much larger
            made.pointwise.weight.copy_((left[:, :, 0] * root[:, None]).T[:, :, None, None])
            made.depthwise.weight.copy_((right[:, 0] * root[:, None]).reshape(made.depthwise.weight.shape))
            if dense.bias is not None and made.pointwise.bias is not None:
                made.pointwise.bias.copy_(dense.bias)
        return made.requires_grad_(dense.weight.requires_grad).train(dense.training)


def saved_fraction(dense: nn.Conv2d) -> float:
    """The share of a dense convolution's multiply-accumulates that a separable one saves: 1 - 1 / out - 1 / k^2."""
    return 1 - 1 / dense.out_channels - 1 / (dense.kernel_size[0] * dense.kernel_size[1])


def replaceable(network: nn.Module, keep: Sequence[str] = ()) -> dict[str, nn.Conv2d]:
    """Dense convolutions that cost less as separable ones, by path, none of them at or below a path of `keep`."""
    return {
        path: layer
        for path, layer in network.named_modules()
        if type(layer) is nn.Conv2d and layer.groups == 1 and saved_fraction(layer) > 0 and path
        if not any(path == one or path.startswith(one + ".") for one in keep)
    }
