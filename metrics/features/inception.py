"""FID's Inception-v3: torchvision's, changed where TensorFlow's network of 2015-12-05 differs (Szegedy et al. 2016).

The differences: average pools leave the padding out of the mean, the last block pools by maximum, 1008 classes. The
weights are one public file under two names, pytorch-fid's `pt_inception-2015-12-05-6726825d.pth` and torch-fidelity's
`weights-inception-2015-12-05-6726825d.pth`; both carry torchvision's names of the layers.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.inception import (
    BasicConv2d,
    Inception3,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)

from gendistill.metrics.features.weight_files import read_state

SIZE = 299
FEATURES = 2048
CLASSES = 1008
URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
PUBLIC_HASH = "6726825d"  # the beginning of that file's SHA-256


def _mean_pool(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


class _A(InceptionA):
    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_mean_pool(x))]


class _C(InceptionC):
    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return [self.branch1x1(x), single, double, self.branch_pool(_mean_pool(x))]


class _E(InceptionE):
    pools_by_maximum = False  # TensorFlow's last block does

    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, kernel_size=3, stride=1, padding=1) if self.pools_by_maximum else _mean_pool(x)
        return [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        ]


class _FoldedConv(nn.Module):
    """A convolution that its batch norm has gone into, and the rectifier."""

    def __init__(self, layer: BasicConv2d) -> None:
        super().__init__()
        self.conv = fuse_conv_bn_eval(layer.conv, layer.bn)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu_(self.conv(x))


class FidInception(nn.Module):
    """The network up to its pooled layer: pictures float (B, 3, 299, 299) in [0, 255] to features (B, 2048), >= 0.

    Pictures are scaled as TensorFlow's graph and torch-fidelity scale them, (x - 128) / 128; pytorch-fid takes
    (x - 127.5) / 127.5. Batch norms are folded into the convolutions, and the layers run with the channels last.

    Raises:
        ValueError: `state` lacks a layer of the network, has one too many, or one of another shape.
    """

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        blocks = [BasicConv2d, _A, InceptionB, _C, InceptionD, _E, InceptionAux]
        with torch.device("meta"):  # no random weights, which take longer than the loading
            network = Inception3(CLASSES, aux_logits=False, inception_blocks=blocks, init_weights=False)
        network.Mixed_7c.pools_by_maximum = True
        # Files older than PyTorch 0.4.1 do not count batches.
        counts = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
        try:
            network.load_state_dict(counts | dict(state), assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"weights: got none of FID's Inception-v3 ({reason}); takes torchvision's layer names.") from error
        del network.fc, network.dropout
        _fold(network.eval())
        self.network = network.float().requires_grad_(False).to(memory_format=torch.channels_last)

    @classmethod
    def load(cls, path: str | Path) -> "FidInception":
        """From the public `.pth`, or the same tensors in `.safetensors`; ValueError if it holds anything else."""
        return cls(read_state(path))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.network
        x = ((x - 128) / 128).contiguous(memory_format=torch.channels_last)
        x = n.maxpool1(n.Conv2d_2b_3x3(n.Conv2d_2a_3x3(n.Conv2d_1a_3x3(x))))
        x = n.maxpool2(n.Conv2d_4a_3x3(n.Conv2d_3b_1x1(x)))
        x = n.Mixed_6a(n.Mixed_5d(n.Mixed_5c(n.Mixed_5b(x))))
        x = n.Mixed_6e(n.Mixed_6d(n.Mixed_6c(n.Mixed_6b(x))))
        return n.Mixed_7c(n.Mixed_7b(n.Mixed_7a(x))).mean(dim=(2, 3))


def _fold(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, BasicConv2d):
            setattr(module, name, _FoldedConv(child))
        else:
            _fold(child)
