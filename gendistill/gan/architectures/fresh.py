"""A discriminator for pictures of any size, for a generator that comes without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from torch import nn

from gendistill.gan.architectures.resnet import ResNetDiscriminator
from gendistill.gan.architectures.translation import PatchDiscriminator

FEWEST, MOST = 100_000, 10_000_000  # parameters where nothing is asked for
WIDEST = 1024  # channels of the residual blocks, and of the patches' first layer times 4


class Spec(Protocol):
    """What is read of a generator's specification: "noise" or "image", (C, H, W) of its pictures, and its classes."""

    @property
    def kind(self) -> str: ...
    @property
    def output_shape(self) -> Sequence[int]: ...
    @property
    def num_classes(self) -> int: ...


class SpecifiedGenerator(Protocol):
    """A network with its specification."""

    @property
    def network(self) -> nn.Module: ...
    @property
    def spec(self) -> Spec: ...


def discriminator_for(generator: SpecifiedGenerator, num_params: int | None = None) -> ResNetDiscriminator | PatchDiscriminator:
    """A fresh discriminator of the generator's pictures and classes, with at most `num_params` parameters.

    Without `num_params`: about as many as the generator has, between 100,000 and 10,000,000.

    Raises:
        ValueError: see `fresh_discriminator`.
    """
    if num_params is None:
        num_params = min(max(count(generator.network), FEWEST), MOST)
    spec = generator.spec
    return fresh_discriminator(spec.kind, spec.output_shape, spec.num_classes, num_params)


def fresh_discriminator(
    kind: str, shape: Sequence[int], num_classes: int = 0, num_params: int = 1_000_000
) -> ResNetDiscriminator | PatchDiscriminator:
    """The widest discriminator of at most `num_params` parameters for pictures of `shape` (C, H, W), square or not.

    Args:
        kind: "noise": residual blocks and a logit for a picture. "image": PatchGAN, a map of logits. Both have spectral norms
            and a projection of the classes.

    Raises:
        ValueError: an unknown kind; fewer parameters than the narrowest takes; a picture to picture below 3 pixels.
    """
    if kind not in ("noise", "image"):
        raise ValueError(f"kind {kind}: takes noise or image")
    channels, height, width = shape
    pictures = (_Residual if kind == "noise" else _Patches)(channels, height, width, num_classes)
    counts = {base: pictures.count(base) for base in range(8, WIDEST + 1, pictures.step)}
    fitting = [base for base, params in counts.items() if params <= num_params]
    if not fitting:
        raise ValueError(
            f"num_params {num_params}: a discriminator of {height} x {width} pictures takes at least {min(counts.values())}"
        )
    return pictures.make(max(fitting))


def count(network: nn.Module) -> int:
    """Parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


@dataclass(frozen=True)
class _Residual:
    """Blocks that halve to 8 pixels (or until the shorter edge has 4) and two more: at 32 pixels Miyato et al. 2018, table 4.

    The width is `base` at 32 pixels and below, and half of it for each doubling above, to an eighth.
    """

    channels: int
    height: int
    width: int
    num_classes: int

    @property
    def num_down(self) -> int:
        longest, shortest, num_down = max(self.height, self.width), min(self.height, self.width), 0
        while longest >> num_down > 8 and shortest >> num_down >= 8:
            num_down += 1
        return num_down

    @property
    def doublings(self) -> list[int]:
        """Above 32 pixels, of each block, at most 3."""
        edges = [max(self.height, self.width) >> k for k in range(self.num_down + 2)]
        return [min(3, max(0, (edge - 1).bit_length() - 5)) for edge in edges]

    @property
    def step(self) -> int:
        return 2 ** max(self.doublings)

    def widths(self, base: int) -> list[int]:
        return [base >> doublings for doublings in self.doublings]

    def count(self, base: int) -> int:
        """Parameters, known without making the network: at a large width that takes seconds."""
        widths = self.widths(base)
        total = widths[-1] * (1 + self.num_classes) + 1
        for k, (i, o) in enumerate(pairwise([self.channels, *widths])):
            skip = i * o + o if k < self.num_down or i != o else 0
            total += 9 * i * o + o + 9 * o * o + o + skip
        return total

    def make(self, base: int) -> ResNetDiscriminator:
        return ResNetDiscriminator(self.height, self.num_classes, self.widths(base), self.num_down, self.channels)


@dataclass(frozen=True)
class _Patches:
    """PatchGAN (Isola et al. 2017) of 3 strided layers, or as many as leave a logit. Its first layer is `base` / 4 wide."""

    channels: int
    height: int
    width: int
    num_classes: int
    step = 4

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 3:
            raise ValueError(f"pictures of {self.height} x {self.width}: a discriminator of patches takes at least 3 pixels")

    @property
    def num_layers(self) -> int:
        return max(k for k in range(4) if min(self.height, self.width) >> k >= 3)

    def count(self, base: int) -> int:
        widths = [self.channels, *(base // 4 * 2**k for k in range(self.num_layers + 1))]
        return sum(16 * i * o + o for i, o in pairwise(widths)) + widths[-1] * (16 + self.num_classes) + 1

    def make(self, base: int) -> PatchDiscriminator:
        return PatchDiscriminator(self.channels, self.num_classes, 0, base // 4, self.num_layers, norm=False, spectral=True)
