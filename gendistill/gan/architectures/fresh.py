"""A newly initialized discriminator for images of any size, for teachers without a discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from gendistill.gan.architectures.resnet import ResNetDiscriminator
from gendistill.gan.architectures.translation import PatchDiscriminator
from gendistill.gan.generator import Generator
from gendistill.networks.counting import parameters

MIN_PARAMS, MAX_PARAMS = 100_000, 10_000_000  # of `discriminator_for`
WIDEST = 1024  # channels of the residual blocks, and 4 times those of the first layer of PatchGAN

Fresh = ResNetDiscriminator | PatchDiscriminator


def discriminator_for(generator: Generator) -> Fresh:
    """A newly initialized discriminator for the generator's images and classes.

    It has about as many parameters as the generator, but at least 100,000 and at most 10,000,000.

    Raises:
        ValueError: see `fresh_discriminator`.
    """
    spec = generator.spec
    budget = min(max(parameters(generator.network), MIN_PARAMS), MAX_PARAMS)
    return fresh_discriminator(spec.kind, spec.output_shape, spec.num_classes, budget)


def fresh_discriminator(kind: str, shape: Sequence[int], num_classes: int = 0, num_params: int = 1_000_000) -> Fresh:
    """The widest discriminator of at most `num_params` parameters for images of `shape` (C, H, W), square or not.

    Args:
        kind: of the generator's input. "noise": residual blocks with one logit per image. "image": PatchGAN (Isola et al.
            2017) with a map of logits and 3 strided layers, fewer for small images. Both have spectral norms and class
            projection.

    Raises:
        ValueError: `kind` is unknown, `num_params` is below the narrowest network, or "image" with an edge below 3 pixels.
    """
    if kind not in ("noise", "image"):
        raise ValueError(f"kind {kind}: expects noise or image")
    channels, height, width = shape
    num_down, halvings = _residual_blocks(height, width)
    num_layers = max((k for k in range(4) if min(height, width) >> k >= 3), default=0)
    if kind == "image" and min(height, width) < 3:
        raise ValueError(f"images of {height} x {width}: a patch discriminator expects at least 3 pixels")

    def widths(base: int) -> list[int]:
        return [base >> k for k in halvings] if kind == "noise" else [base // 4 * 2**k for k in range(num_layers + 1)]

    def count(base: int) -> int:
        """The number of parameters in closed form, as building a wide network takes seconds."""
        layers = list(enumerate(pairwise([channels, *widths(base)])))
        head = (num_classes + (1 if kind == "noise" else 16)) * widths(base)[-1] + 1
        if kind == "image":
            return head + sum(16 * i * o + o for _, (i, o) in layers)
        skips = sum(i * o + o for k, (i, o) in layers if k < num_down or i != o)
        return head + skips + sum(9 * (i + o) * o + 2 * o for _, (i, o) in layers)

    bases = range(8, WIDEST + 1, 4 if kind == "image" else 2 ** max(halvings))
    fitting = [base for base in bases if count(base) <= num_params]
    if not fitting:
        minimum = min(map(count, bases))
        raise ValueError(f"num_params {num_params}: a discriminator of {height} x {width} images needs at least {minimum}")
    if kind == "noise":
        return ResNetDiscriminator(height, num_classes, widths(fitting[-1]), num_down, channels)
    return PatchDiscriminator(channels, num_classes, 0, fitting[-1] // 4, num_layers, norm=False, spectral=True)


def _residual_blocks(height: int, width: int) -> tuple[int, list[int]]:
    """Downsampling blocks to 8 pixels (or until the shorter edge has 4), and two more blocks without downsampling.

    At 32 pixels this is the discriminator of Miyato et al. 2018, table 4.

    Returns:
        The number of downsampling blocks, and for each block how often its width is halved: never at 32 pixels and below, once
        for each doubling above, at most three times.
    """
    longest, shortest, num_down = max(height, width), min(height, width), 0
    while longest >> num_down > 8 and shortest >> num_down >= 8:
        num_down += 1
    edges = [longest >> k for k in range(num_down + 2)]
    return num_down, [min(3, max(0, (edge - 1).bit_length() - 5)) for edge in edges]
