"""A discriminator for pictures of any size, for a generator that comes without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import nn

from gendistill.gan.architectures.resnet import ResNetDiscriminator
from gendistill.gan.architectures.translation import PatchDiscriminator

FEWEST, MOST = 100_000, 10_000_000  # parameters where nothing is asked for
WIDEST = 128  # of the multiples of the narrowest discriminator


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
    of = (_residual if kind == "noise" else _patch)(channels, height, width, num_classes)
    # Every width is a whole multiple of k, so the count is a polynomial of degree 2 in k, which three of them tell (Newton).
    one, two, three = (count(of(k)) for k in (1, 2, 3))
    if one > num_params:
        raise ValueError(f"num_params {num_params}: a discriminator of {height} x {width} pictures takes at least {one}")
    counts = {k: one + (k - 1) * (two - one) + (k - 1) * (k - 2) // 2 * (three - 2 * two + one) for k in range(1, WIDEST + 1)}
    return of(max(k for k, params in counts.items() if params <= num_params))


def count(network: nn.Module) -> int:
    """Parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def _residual(channels: int, height: int, width: int, num_classes: int) -> Callable[[int], ResNetDiscriminator]:
    """Blocks that halve to 8 pixels (or until the shorter edge has 4) and two more: at 32 pixels Miyato et al. 2018, table 4.

    The width is the full one at 32 pixels and below, and half of it for each doubling above, to an eighth.
    """
    longest, shortest, num_down = max(height, width), min(height, width), 0
    while longest >> num_down > 8 and shortest >> num_down >= 8:
        num_down += 1
    above = [max(0, ((longest >> k) - 1).bit_length() - 5) for k in range(num_down + 2)]

    def make(k: int) -> ResNetDiscriminator:
        widths = [8 * k >> min(doublings, 3) for doublings in above]
        return ResNetDiscriminator(height, num_classes, widths, num_down, channels)

    return make


def _patch(channels: int, height: int, width: int, num_classes: int) -> Callable[[int], PatchDiscriminator]:
    """Strided layers as in PatchGAN (Isola et al. 2017), at most 3, and as few as leave a logit."""
    shortest = min(height, width)
    if shortest < 3:
        raise ValueError(f"pictures of {height} x {width}: a discriminator of patches takes at least 3 pixels")
    num_layers = max(k for k in range(4) if shortest >> k >= 3)
    return lambda k: PatchDiscriminator(channels, num_classes, 0, 2 * k, num_layers, norm=False, spectral=True)
