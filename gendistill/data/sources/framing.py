"""Which part of an image is trained on and at what size: one square, or the nearest of a few shapes."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from PIL import Image

from gendistill.data.images import fitted
from gendistill.runtime.hashing import chance

Crop: TypeAlias = Literal["center", "random", "buckets"]

# Beyond 1:2 the teacher has seen too little to teach.
MAX_RATIO = 2.0


@dataclass(frozen=True)
class Framing:
    """Crops and resizes images.

    Attributes:
        sizes: (height, width) in pixels that an image may come out at.
        crop: `center`; `random`, one place an image that `seed` and the image's key decide; or `buckets`, the centre
            of the nearest of several sizes.
        seed: of the random crop.
    """

    sizes: tuple[tuple[int, int], ...]
    crop: Crop = "center"
    seed: int = 0

    @classmethod
    def of(cls, crop: Crop, resolution: int, multiple: int, seed: int) -> "Framing":
        """What the settings mean.

        Args:
            resolution: of squares, in pixels; buckets have at most its area.
            multiple: of pixels that the network needs edges to be.
        """
        sizes = bucket_sizes(resolution, multiple) if crop == "buckets" else ((resolution, resolution),)
        return cls(sizes, crop, seed if crop == "random" else 0)

    def frame(self, image: Image.Image, key: str) -> Image.Image:
        """An RGB image of any size at one of `sizes`."""
        height, width = nearest_size(self.sizes, image.height / image.width)
        if self.crop == "random":
            at = chance("crop x", self.seed, key), chance("crop y", self.seed, key)
            return fitted(image, height, width, at)
        return fitted(image, height, width)


def bucket_sizes(resolution: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """(height, width) of about `resolution`^2 pixels and at most that, edges multiples of `multiple`, from 1:2 to 2:1.

    For each height the widest that fits, and the other way round, as SDXL's buckets are made (Podell et al. 2023,
    appendix I; there for 1024 and 64).

    Raises:
        ValueError: the resolution is no multiple of `multiple`.
    """
    if resolution % multiple:
        raise ValueError(f"data.resolution {resolution}: expects a multiple of {multiple} with data.crop=buckets")
    sizes = set()
    for edge in range(multiple, resolution + 1, multiple):
        other = resolution**2 // edge // multiple * multiple
        if other <= MAX_RATIO * edge:
            sizes |= {(edge, other), (other, edge)}
    return tuple(sorted(sizes))


def nearest_size(sizes: tuple[tuple[int, int], ...], ratio: float) -> tuple[int, int]:
    """The (height, width) whose height / width is nearest to `ratio`, as a factor."""
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - math.log(ratio)))
