"""What a GAN teacher is: a network of any architecture, and what it takes and gives, adapted once at the door."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor, nn

FASTEST = torch.channels_last  # of weights, on a CPU: tiny-gan generates in 0.7 of the time, its student learns in 0.8


@dataclass(frozen=True)
class GeneratorSpec:
    """What a generator takes and gives, of one sample.

    Attributes:
        kind: `noise` (standard normal numbers in) or `image` (an image in, in the range of the images that come out).
        input_shape: (latent_dim,) or any other shape of noise; (C, h, w) of an image.
        output_shape: (C, H, W) of the image that comes out.
        num_classes: 0 where it takes no class number.
        classes: their names, or none.
        output_range: of the network's own images, such as (-1, 1) or (0, 1).
    """

    kind: Literal["noise", "image"]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, int, int]
    num_classes: int = 0
    classes: tuple[str, ...] = ()
    output_range: tuple[float, float] = (-1.0, 1.0)

    def class_of(self, text: str) -> int:
        """The number of a class by its name, or by its number as text.

        Raises:
            ValueError: it is neither.
        """
        if text in self.classes:
            return self.classes.index(text)
        if text.isdecimal() and int(text) < self.num_classes:
            return int(text)
        alike = [name for name in self.classes if text and text.lower() in name.lower()]
        near = alike or get_close_matches(text, self.classes, 1, 0.0)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        takes = f"one of its {self.num_classes} classes by name, or its" if self.classes else "a class's"
        raise ValueError(f"{text!r}: the generator takes {takes} number from 0 to {self.num_classes - 1}{hint}")

    @property
    def scale(self) -> int | None:
        """How many times larger than its image an `image` generator generates; None where it is no whole number."""
        edges = [of / at for of, at in zip(self.output_shape[1:], self.input_shape[1:], strict=True)]
        return int(edges[0]) if edges[0] == edges[1] and edges[0].is_integer() else None


class Generator:
    """`generator(inputs, labels)`: images in [-1, 1], whatever its network calls them.

    Args:
        network: called as `network(inputs)`, or as `network(inputs, labels)` where there are classes.
    """

    def __init__(self, network: nn.Module, spec: GeneratorSpec) -> None:
        self.network, self.spec = network, spec

    def with_network(self, network: nn.Module) -> Generator:
        """The same with another network: a student, an average, one that is wrapped."""
        return Generator(network, self.spec)

    def __call__(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1].

        Args:
            inputs: (B, *input_shape), images in [-1, 1].
            labels: (B,) int64; only where there are classes.
        """
        return self.images(self.network(*self.arguments(inputs, labels)))

    def arguments(self, inputs: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        """What the network is called with, in its own range."""
        low, high = self.spec.output_range
        if self.spec.kind == "image" and (low, high) != (-1.0, 1.0):
            inputs = (inputs + 1) * ((high - low) / 2) + low
        if not self.spec.num_classes:
            return (inputs,)
        assert labels is not None
        return inputs, labels

    def images(self, output: Any) -> Tensor:
        """What the network gave as images in [-1, 1]."""
        low, high = self.spec.output_range
        images = image_in(output)
        return images if (low, high) == (-1.0, 1.0) else (images - low) * (2 / (high - low)) - 1

    def example(self, count: int = 1) -> tuple[Tensor, ...]:
        """What the network is called with: (noise or images, labels), the same each time."""
        random = torch.Generator().manual_seed(0)
        inputs = torch.randn(count, *self.spec.input_shape, generator=random)
        inputs = inputs if self.spec.kind == "noise" else inputs.clamp(-1, 1)
        return (inputs, torch.arange(count) % self.spec.num_classes) if self.spec.num_classes else (inputs,)


def image_in(output: Any) -> Tensor:
    """The image in what a network returned: the tensor itself, the first of several, or diffusers' `.sample`."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Sequence):
        return image_in(output[0])
    return image_in(output.sample)


def between(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Noise on the great circle from a to b (..., D), at `share` (N, ...) of the way: as likely as a and b are.

    Spherical interpolation (White 2016), which linear interpolation is not: its middle is nearer to 0 than noise ever is.
    """
    unit_a, unit_b = (x.flatten() / x.norm() for x in (a, b))
    angle = torch.dot(unit_a, unit_b).clamp(-1, 1).acos().item()
    if math.sin(angle) < 1e-6:
        return a + share * (b - a)
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / math.sin(angle)
