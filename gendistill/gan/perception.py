"""How alike images look to a network: feature maps of images, through which gradients pass."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from gendistill.gan.discriminator import Discriminator
from gendistill.gan.generator import GeneratorSpec
from gendistill.metrics.features.emoji_network import EmojiFeatureNetwork
from gendistill.metrics.features.extractors import EMOJI_FEATURES, IMAGENET
from gendistill.networks.hints import candidates, tap

LAYERS = 4


class Perception:
    """Feature maps of images by a frozen network.

    Args:
        network: called with images as `prepare` gives them, and with labels where `accepts_labels`.
        example: images (1, C, H, W), and labels where it takes them, to find its layers with.
    """

    def __init__(
        self, network: nn.Module, example: tuple[Tensor, ...], *, accepts_labels: bool = False, imagenet: bool = False
    ):
        self.network = network.to(example[0].device).eval().requires_grad_(False)
        self.accepts_labels, self.imagenet = accepts_labels, imagenet
        last = {one.shape[1:]: one.path for one in candidates(self.network, self._arguments(*example))}  # of a resolution
        self.paths = list(last.values())[-LAYERS:]

    def maps(self, images: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """Of images (B, C, H, W) in [-1, 1]: maps (B, c, h, w), finest first."""
        _, features = tap(self.network, self.paths, *self._arguments(images, labels))
        return features

    def _arguments(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        if self.imagenet:
            mean, deviation = (images.new_tensor(of)[:, None, None] for of in IMAGENET)
            images = ((images + 1) * 127.5 - mean) / deviation
        return (images, labels) if self.accepts_labels and labels is not None else (images,)


def open_perception(name: str, spec: GeneratorSpec, discriminator: Discriminator | None, example: Tensor) -> Perception | None:
    """The network of `gan.output.perceptual_network`; None for that of a discriminator where there is none.

    Args:
        name: `discriminator` (the teacher's), `emoji`, or `torchvision:NAME` with its public weights.
        example: images (1, C, H, W).

    Raises:
        ValueError: it is none of these, or cannot be had.
    """
    if name == "discriminator":
        if discriminator is None:
            return None
        labels = (example.new_zeros(1).long(),) if discriminator.accepts_labels else ()
        return Perception(discriminator.network, (example, *labels), accepts_labels=discriminator.accepts_labels)
    if spec.output_shape[0] != 3:
        raise ValueError(
            f"gan.output.perceptual_network {name}: looks at 3 channels, the teacher generates {spec.output_shape[0]}"
        )
    if name == "emoji":
        return Perception(_Resized(EmojiFeatureNetwork.load(Path(EMOJI_FEATURES))), (example,))
    kind, _, model = name.partition(":")
    if kind == "torchvision" and model:
        return Perception(_torchvision(model), (example,), imagenet=True)
    raise ValueError(
        f"gan.output.perceptual_network {name}: expects discriminator, emoji or torchvision:NAME (torchvision:vgg16)"
    )


class _Resized(nn.Module):
    """The emoji classifier's blocks at the size that it was trained for."""

    def __init__(self, network: EmojiFeatureNetwork) -> None:
        super().__init__()
        self.stem, self.blocks = network.stem, network.blocks

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (32, 32):
            images = F.interpolate(images, (32, 32), mode="bilinear", antialias=True)
        return self.blocks(self.stem(images))


def _torchvision(model: str) -> nn.Module:
    from torchvision.models import get_model

    try:
        network = get_model(model, weights="DEFAULT")
    except (ValueError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"gan.output.perceptual_network torchvision:{model} cannot be opened: {first}") from error
    return getattr(network, "features", network)
