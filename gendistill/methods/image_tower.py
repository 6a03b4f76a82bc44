"""A frozen network of images that gradients pass through: CLIP's image encoder, or DINOv2."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gendistill.metrics.features.extractors import IMAGENET
from gendistill.metrics.features.vision_towers import CLIP, DINOV2, DINOV2_SIZE, dinov2_features, open_clip_model


class ImageTower:
    """Embeddings of images, which are resized to the network's input by a differentiable bicubic resize.

    Args:
        network: frozen, with square inputs of edge `size`.
        mean, deviation: of the channels, for images in [0, 1].
    """

    def __init__(self, network: nn.Module, size: int, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        self.network, self.size = network, size
        self.mean, self.deviation = (torch.tensor(value)[:, None, None] for value in (mean, deviation))

    @classmethod
    def of_clip(cls, model: Any) -> ImageTower:
        """The image encoder of a model of open_clip."""
        import open_clip  # from an extra; takes seconds to import

        settings = open_clip.get_model_preprocess_cfg(model)
        size = settings["size"]
        return cls(model.visual, size if isinstance(size, int) else size[0], settings["mean"], settings["std"])

    @classmethod
    def called(cls, name: str, field: str, device: torch.device | str) -> ImageTower:
        """The network `clip`, `dinov2`, `dinov2:ID_OR_FOLDER`, or a folder or MODEL/TAG of open_clip; errors name `field`."""
        kind, _, rest = name.partition(":")
        if kind == "dinov2":
            extractor = dinov2_features(rest or DINOV2, device)
            mean, deviation = (tuple(value / 255 for value in channels) for channels in IMAGENET)
            return cls(extractor.module, extractor.resizing.size or DINOV2_SIZE, mean, deviation)
        model = open_clip_model(CLIP if name == "clip" else name, field).model
        return cls.of_clip(model.eval().requires_grad_(False).to(device))

    def __call__(self, images: Tensor) -> Tensor:
        """Embeddings (B, E) of images (B, 3, H, W) in [-1, 1], of any dtype: torch resizes none of bfloat16 on a CPU."""
        images = images.float()
        if images.shape[2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True)
        prepared = ((images + 1) / 2 - self.mean.to(images)) / self.deviation.to(images)
        embedded: Tensor = self.network(prepared)
        return embedded.float()
