"""Differentiable feature maps of images from a frozen network, for perceptual losses."""

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
    """Feature maps of images from a frozen network.

    Args:
        network: called with images, and with labels if `accepts_labels`.
        example: images (1, C, H, W), and labels if `accepts_labels`, to find its layers with.
        imagenet: normalize images with the mean and standard deviation of ImageNet.
    """

    def __init__(
        self, network: nn.Module, example: tuple[Tensor, ...], *, accepts_labels: bool = False, imagenet: bool = False
    ):
        self.network = network.to(example[0].device).eval().requires_grad_(False)
        self.accepts_labels, self.imagenet = accepts_labels, imagenet
        layers = candidates(self.network, self._arguments(*example))
        last_by_resolution = {layer.shape[1:]: layer.path for layer in layers}
        self.paths = list(last_by_resolution.values())[-LAYERS:]

    def maps(self, images: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """Feature maps (B, c, h, w) of images (B, C, H, W) in [-1, 1], the finest first."""
        _, features = tap(self.network, self.paths, *self._arguments(images, labels))
        return features

    def _arguments(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        if self.imagenet:
            mean, deviation = (images.new_tensor(values)[:, None, None] for values in IMAGENET)
            images = ((images + 1) * 127.5 - mean) / deviation
        return (images, labels) if self.accepts_labels and labels is not None else (images,)


def open_perception(name: str, spec: GeneratorSpec, discriminator: Discriminator | None, example: Tensor) -> Perception | None:
    """The network of `gan.output.perceptual_network`; None for `discriminator` if the teacher has none.

    Args:
        name: `discriminator` (the teacher's), `emoji`, or `torchvision:NAME` with its public weights.
        example: images (1, C, H, W).

    Raises:
        ValueError: the name is unknown, or the weights cannot be loaded.
    """
    if name == "discriminator":
        if discriminator is None:
            return None
        labels = (example.new_zeros(1).long(),) if discriminator.accepts_labels else ()
        return Perception(discriminator.network, (example, *labels), accepts_labels=discriminator.accepts_labels)
    if spec.output_shape[0] != 3:
        raise ValueError(
            f"gan.output.perceptual_network {name}: expects 3 channels, but the images of the teacher have "
            f"{spec.output_shape[0]}"
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
    """The blocks of the emoji classifier, at the resolution of its training."""

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
