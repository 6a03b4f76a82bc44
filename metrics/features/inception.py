"""FID's Inception-v3: torchvision's network with the differences of TensorFlow's of 2015-12-05 (Szegedy et al. 2016).

The differences: average pooling excludes the padding, the last block uses max pooling, and there are 1008 classes. The
weights are one public file under two names, pytorch-fid's `pt_inception-2015-12-05-6726825d.pth` and torch-fidelity's
`weights-inception-2015-12-05-6726825d.pth`; both have torchvision's layer names.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.fx import symbolic_trace
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from gendistill.metrics.features.weight_files import read_state

SIZE = 299
FEATURES = 2048
CLASSES = 1008
URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
PUBLIC_HASH = "6726825d"  # first digits of that file's SHA-256


class FidInception(nn.Module):
    """The network up to its pooled layer: images float (B, 3, 299, 299) in [0, 255] to features (B, 2048), >= 0.

    Images are scaled as in TensorFlow's graph and torch-fidelity, (x - 128) / 128; pytorch-fid uses (x - 127.5) / 127.5.
    Batch norms are folded into the convolutions, and the layers run in the channels-last memory format.

    Raises:
        ValueError: `state` lacks a layer of the network, has an additional one, or one of another shape.
    """

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        from torchvision.models import Inception3  # from an extra; takes seconds to import

        super().__init__()
        with torch.device("meta"):  # avoids the initialisation of weights, which takes longer than loading them
            network = Inception3(CLASSES, aux_logits=False, init_weights=False)
        # Files older than PyTorch 0.4.1 have no num_batches_tracked.
        counts = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
        try:
            network.load_state_dict(counts | dict(state), assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"weights: got tensors that do not fit FID's Inception-v3 ({reason}); expects torchvision's layer names."
            ) from error
        network.dropout, network.fc = nn.Identity(), nn.Identity()
        traced = symbolic_trace(network.eval().float().requires_grad_(False))
        pools = [node for node in traced.graph.nodes if node.target is F.avg_pool2d]
        for node in pools:
            node.kwargs = {**node.kwargs, "count_include_pad": False}
        pools[-1].target = F.max_pool2d
        pools[-1].kwargs = {"kernel_size": 3, "stride": 1, "padding": 1}
        traced.recompile()
        self.network = fuse(traced, no_trace=True).to(memory_format=torch.channels_last)

    @classmethod
    def load(cls, path: str | Path) -> "FidInception":
        """Load the public `.pth`, or the same tensors in `.safetensors`; ValueError if the file has other contents."""
        return cls(read_state(path))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network(((x - 128) / 128).contiguous(memory_format=torch.channels_last))
        return features
