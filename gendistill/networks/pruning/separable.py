"""Replace dense convolutions by depthwise-separable ones (Howard et al. 2017, MobileNets; Li et al. 2020, GAN Compression)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SeparableConv2d(nn.Module):
    """A depthwise convolution (one kernel per channel) followed by a 1x1 convolution; shapes as with the dense convolution.

    Args:
        dense: the convolution to copy the shapes from; the weights are torch's default initialization.
    """

    def __init__(self, dense: nn.Conv2d) -> None:
        super().__init__()
        factory = {"device": dense.weight.device, "dtype": dense.weight.dtype}
        shape = (dense.kernel_size, dense.stride, dense.padding, dense.dilation)
        width, mode = dense.in_channels, dense.padding_mode
        self.depthwise = nn.Conv2d(width, width, *shape, width, False, mode, **factory)  # type: ignore[arg-type]
        self.pointwise = nn.Conv2d(width, dense.out_channels, 1, bias=dense.bias is not None, **factory)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))

    @classmethod
    def nearest(cls, dense: nn.Conv2d) -> SeparableConv2d:
        """The separable convolution with the least squared error of the weight.

        The kernels of each input channel form a matrix (out_channels, k * k). Its best rank-1 approximation (Eckart & Young
        1936) is the outer product of the channel's column of the 1x1 convolution and the channel's depthwise kernel.
        """
        convolution = cls(dense)
        with torch.no_grad():
            kernels = dense.weight.double().flatten(2).transpose(0, 1)  # (in, out, k * k)
            left, size, right = torch.linalg.svd(kernels, full_matrices=False)
            root = size[:, 0].sqrt()  # split evenly, so that the gradients of both factors have similar magnitude
            convolution.pointwise.weight.copy_((left[:, :, 0] * root[:, None]).T[:, :, None, None])
            convolution.depthwise.weight.copy_((right[:, 0] * root[:, None]).reshape(convolution.depthwise.weight.shape))
            if dense.bias is not None and convolution.pointwise.bias is not None:
                convolution.pointwise.bias.copy_(dense.bias)
        return convolution.requires_grad_(dense.weight.requires_grad).train(dense.training)


def saved_fraction(dense: nn.Conv2d) -> float:
    """The fraction of the multiply-accumulates of a dense convolution that a separable one saves: 1 - 1 / out - 1 / k^2."""
    return 1 - 1 / dense.out_channels - 1 / (dense.kernel_size[0] * dense.kernel_size[1])


def replaceable(network: nn.Module, keep: Sequence[str] = ()) -> dict[str, nn.Conv2d]:
    """Dense convolutions, by path, that cost less as separable ones; without those at or below a path in `keep`."""
    return {
        path: layer
        for path, layer in network.named_modules()
        if type(layer) is nn.Conv2d and layer.groups == 1 and saved_fraction(layer) > 0 and path
        if not any(path == kept or path.startswith(kept + ".") for kept in keep)
    }
