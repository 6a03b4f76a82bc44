"""Adapter for generators of any architecture, and the description of their inputs and outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gendistill.networks.counting import evaluating
from gendistill.samplers.provenance import provenance

FASTEST = torch.channels_last  # memory format on a CPU: tiny-gan samples in 0.7 of the time, and is trained in 0.8


@dataclass(frozen=True)
class GeneratorSpec:
    """The inputs and outputs of a generator, for one sample.

    Attributes:
        kind: of the input: `noise` (standard normal) or `image` (in the range of the output images).
        input_shape: (latent_dim,) or any other shape of noise; (C, h, w) of an image.
        output_shape: (C, H, W) of the output image.
        num_classes: 0 for an unconditional generator.
        classes: names of the classes, or empty.
        output_range: value range of the network's images, such as (-1, 1) or (0, 1).
        one_hot: whether the network expects labels as vectors (B, num_classes) with a 1 at the class, such as StarGAN's
            attributes, instead of class numbers (B,).
    """

    kind: Literal["noise", "image"]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, int, int]
    num_classes: int = 0
    classes: tuple[str, ...] = ()
    output_range: tuple[float, float] = (-1.0, 1.0)
    one_hot: bool = False

    def labels(self, numbers: Tensor) -> Tensor:
        """Class numbers (B,) as the network expects them. Vectors (B, num_classes) are unchanged."""
        vectors = self.one_hot and not numbers.is_floating_point()
        return nn.functional.one_hot(numbers, self.num_classes).float() if vectors else numbers

    def class_of(self, text: str) -> int:
        """The number of a class from its name, or from its number as text.

        Raises:
            ValueError: there is no such class.
        """
        if text in self.classes:
            return self.classes.index(text)
        if text.isdecimal() and int(text) < self.num_classes:
            return int(text)
        similar = [name for name in self.classes if text and text.lower() in name.lower()]
        near = similar or get_close_matches(text, self.classes, 1, 0.0)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        names = f"one of its {self.num_classes} classes by name, or its" if self.classes else "a class"
        raise ValueError(f"{text!r}: the generator expects {names} number from 0 to {self.num_classes - 1}{hint}")

    def knows(self, texts: Iterable[str]) -> bool:
        """Whether all texts are names or numbers of classes."""
        numbers = {str(number) for number in range(self.num_classes)}
        return set(texts) <= numbers | set(self.classes)

    @property
    def scale(self) -> int | None:
        """The upscaling factor of an `image` generator; None where it is not an integer."""
        ratios = [large / small for large, small in zip(self.output_shape[1:], self.input_shape[1:], strict=True)]
        return int(ratios[0]) if ratios[0] == ratios[1] and ratios[0].is_integer() else None


class Generator:
    """`generator(inputs, labels)`: images in [-1, 1], for any output type and range of the network.

    Args:
        network: called as `network(inputs)`, or as `network(inputs, labels)` with classes.
    """

    def __init__(self, network: nn.Module, spec: GeneratorSpec) -> None:
        self.network, self.spec = network, spec

    def fingerprint(self) -> dict[str, Any]:
        """Everything that determines the images of given inputs, as JSON values."""
        return {"network": provenance(self.network), "spec": provenance(self.spec)}

    def with_network(self, network: nn.Module) -> Generator:
        """The same adapter with another network: a student, its EMA, or a wrapped network."""
        return Generator(network, self.spec)

    def __call__(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1].

        Args:
            inputs: (B, *input_shape), images in [-1, 1].
            labels: (B,) int64, or vectors for a network with one-hot labels; only with classes.
        """
        return self.images(self.network(*self.arguments(inputs, labels)))

    def arguments(self, inputs: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        """The arguments of the network, with input images in the network's range."""
        low, high = self.spec.output_range
        if self.spec.kind == "image" and (low, high) != (-1.0, 1.0):
            inputs = (inputs + 1) * ((high - low) / 2) + low
        if not self.spec.num_classes:
            return (inputs,)
        assert labels is not None
        return inputs, self.spec.labels(labels)

    def images(self, output: Any) -> Tensor:
        """The output of the network as images in [-1, 1]."""
        low, high = self.spec.output_range
        images = image_in(output)
        return images if (low, high) == (-1.0, 1.0) else (images - low) * (2 / (high - low)) - 1

    def example(self, count: int = 1) -> tuple[Tensor, ...]:
        """Example arguments of the network: (noise or images, labels), the same in every call."""
        random = torch.Generator().manual_seed(0)
        inputs = torch.randn(count, *self.spec.input_shape, generator=random)
        inputs = inputs if self.spec.kind == "noise" else inputs.clamp(-1, 1)
        classes = self.spec.num_classes
        return (inputs, self.spec.labels(torch.arange(count) % classes)) if classes else (inputs,)


def prefer_channels_last(network: nn.Module, call: Callable[[], object]) -> None:
    """Convert weights to channels last, which takes three quarters of the time on a CPU.

    A network that fails in this memory format (by `view` of a tensor that is not contiguous, or as it has weights of 5
    dimensions) is converted back.

    Args:
        call: runs the network on some inputs.
    """
    try:
        network.to(memory_format=FASTEST)
        with evaluating(network), torch.random.fork_rng(devices=[]):
            call()
    except RuntimeError:
        network.to(memory_format=torch.contiguous_format)


def image_in(output: Any) -> Tensor:
    """The image in the output of a network: the tensor itself, the first of several, or diffusers' `.sample`."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Sequence):
        return image_in(output[0])
    return image_in(output.sample)


def slerp(a: Tensor, b: Tensor, fraction: Tensor) -> Tensor:
    """Spherical interpolation (White 2016) of noise from a to b (..., D), at each `fraction` (N, ...) of the angle.

    Unlike the linear interpolation, whose midpoint has an untypically small norm, it keeps the norm of Gaussian noise.
    """
    unit_a, unit_b = (x.flatten() / x.norm() for x in (a, b))
    angle = torch.dot(unit_a, unit_b).clamp(-1, 1).acos().item()
    if math.sin(angle) < 1e-6:
        return a + fraction * (b - a)
    return (torch.sin((1 - fraction) * angle) * a + torch.sin(fraction * angle) * b) / math.sin(angle)
