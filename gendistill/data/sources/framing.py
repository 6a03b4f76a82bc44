"""Crop and resize training images: to one square, or to the nearest aspect ratio bucket."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from PIL import Image

from gendistill.data.images import fitted
from gendistill.runtime.hashing import chance
from gendistill.settings.image_size import written_size

Crop: TypeAlias = Literal["center", "random", "buckets"]

# Teachers have seen too few images beyond 1:2.
MAX_RATIO = 2.0


@dataclass(frozen=True)
class Framing:
    """Crops and resizes images.

    Attributes:
        sizes: possible output sizes (height, width) in pixels.
        crop: `center`; `random`, one position per image, determined by `seed` and the image's key; or `buckets`, the centre
            crop at the nearest of several sizes.
        seed: seed of the random crop.
    """

    sizes: tuple[tuple[int, int], ...]
    crop: Crop = "center"
    seed: int = 0

    @classmethod
    def from_settings(cls, crop: Crop, size: tuple[int, int], multiple: int, seed: int) -> "Framing":
        """The framing of the settings.

        Args:
            size: height and width in pixels; buckets have at most the same area.
            multiple: edges must be multiples of this number of pixels.
        """
        sizes = bucket_sizes(size, multiple) if crop == "buckets" else (size,)
        return cls(sizes, crop, seed if crop == "random" else 0)

    def frame(self, image: Image.Image, key: str) -> Image.Image:
        """Crop and resize an RGB image of any size to one of `sizes`."""
        height, width = nearest_size(self.sizes, image.height / image.width)
        if self.crop == "random":
            at = chance("crop x", self.seed, key), chance("crop y", self.seed, key)
            return fitted(image, height, width, at)
        return fitted(image, height, width)


def bucket_sizes(size: tuple[int, int], multiple: int) -> tuple[tuple[int, int], ...]:
    """Sizes (height, width) of at most the pixels of `size`, with edges that are multiples of `multiple`, from 1:2 to 2:1.

    Each height has the largest width that fits, and vice versa, as in the buckets of SDXL (Podell et al. 2023, appendix I;
    there for 1024 and 64).

    Raises:
        ValueError: the edges of `size` are no multiples of `multiple`.
    """
    height, width = size
    if height % multiple or width % multiple:
        raise ValueError(f"data.resolution {written_size(size)}: expects a multiple of {multiple} with data.crop=buckets")
    sizes = {size}
    for edge in range(multiple, math.isqrt(height * width) + 1, multiple):
        other = height * width // edge // multiple * multiple
        if other <= MAX_RATIO * edge:
            sizes |= {(edge, other), (other, edge)}
    return tuple(sorted(sizes))


def nearest_size(sizes: tuple[tuple[int, int], ...], ratio: float) -> tuple[int, int]:
    """The (height, width) whose height / width is nearest to `ratio` in log scale."""
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - math.log(ratio)))
