"""A discriminator for images of any size, for a generator that comes without one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from gendistill.gan.architectures.resnet import ResNetDiscriminator
from gendistill.gan.architectures.translation import PatchDiscriminator
from gendistill.gan.generator import Generator
from gendistill.networks.counting import parameters

FEWEST, MOST = 100_000, 10_000_000  # parameters where nothing is asked for
WIDEST = 1024  # channels of the residual blocks, and of the patches' first layer times 4

Fresh = ResNetDiscriminator | PatchDiscriminator


def discriminator_for(generator: Generator) -> Fresh:
    """A fresh discriminator of the generator's images and classes.

    It has about as many parameters as the generator, at least 100,000 and at most 10,000,000.

    Raises:
        ValueError: see `fresh_discriminator`.
    """
    spec = generator.spec
    budget = min(max(parameters(generator.network), FEWEST), MOST)
    return fresh_discriminator(spec.kind, spec.output_shape, spec.num_classes, budget)


def fresh_discriminator(kind: str, shape: Sequence[int], num_classes: int = 0, num_params: int = 1_000_000) -> Fresh:
    """The widest discriminator of at most `num_params` parameters for images of `shape` (C, H, W), square or not.

    Args:
        kind: "noise": residual blocks and a logit for an image. "image": PatchGAN (Isola et al. 2017) of 3
            strided layers, or as many as leave a logit, a map of logits. Both have spectral norms and project the classes.

    Raises:
        ValueError: an unknown kind; fewer parameters than the narrowest takes; an image to image below 3 pixels.
    """
    if kind not in ("noise", "image"):
        raise ValueError(f"kind {kind}: expects noise or image")
    channels, height, width = shape
    num_down, halvings = _residual_blocks(height, width)
    num_layers = max((k for k in range(4) if min(height, width) >> k >= 3), default=0)
    if kind == "image" and min(height, width) < 3:
        raise ValueError(f"images of {height} x {width}: a discriminator of patches takes at least 3 pixels")

    def widths(base: int) -> list[int]:
        return [base >> k for k in halvings] if kind == "noise" else [base // 4 * 2**k for k in range(num_layers + 1)]

    def count(base: int) -> int:
        """Parameters, known without making the network: at a large width that takes seconds."""
        each = list(enumerate(pairwise([channels, *widths(base)])))
        head = (num_classes + (1 if kind == "noise" else 16)) * widths(base)[-1] + 1
        if kind == "image":
            return head + sum(16 * i * o + o for _, (i, o) in each)
        skips = sum(i * o + o for k, (i, o) in each if k < num_down or i != o)
        return head + skips + sum(9 * (i + o) * o + 2 * o for _, (i, o) in each)

    bases = range(8, WIDEST + 1, 4 if kind == "image" else 2 ** max(halvings))
    fitting = [base for base in bases if count(base) <= num_params]
    if not fitting:
        least = min(map(count, bases))
        raise ValueError(f"num_params {num_params}: a discriminator of {height} x {width} images takes at least {least}")
    if kind == "noise":
        return ResNetDiscriminator(height, num_classes, widths(fitting[-1]), num_down, channels)
    return PatchDiscriminator(channels, num_classes, 0, fitting[-1] // 4, num_layers, norm=False, spectral=True)


def _residual_blocks(height: int, width: int) -> tuple[int, list[int]]:
    """Blocks that halve to 8 pixels (or until the shorter edge has 4) and two more: at 32 pixels Miyato et al. 2018, table 4.

    Returns:
        How many halve the image, and how often each block's width is halved: none at 32 pixels and below, and once for each
        doubling above, to an eighth.
    """
    longest, shortest, num_down = max(height, width), min(height, width), 0
    while longest >> num_down > 8 and shortest >> num_down >= 8:
        num_down += 1
    edges = [longest >> k for k in range(num_down + 2)]
    return num_down, [min(3, max(0, (edge - 1).bit_length() - 5)) for edge in edges]
