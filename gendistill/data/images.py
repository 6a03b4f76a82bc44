"""From the bytes of an image, of whatever kind, to an RGB image and to the tensor that an encoder takes."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gendistill.samplers import to_uint8

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")

# Named, because Pillow otherwise tries every decoder it has, and some (EPS) start another program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
Made = TypeVar("Made")
TAKEN = "PNG, JPEG, WebP, BMP or GIF"

# Pillow's own warning level, a quarter of a gigabyte in 24-bit colour: a few kilobytes of PNG can ask for far more.
MAX_PIXELS = 89_478_485


def decode_image(file: Path | BinaryIO, most: int = MAX_PIXELS) -> Image.Image:
    """Decode an image as it is meant to be seen: RGB, upright (EXIF orientation), transparency on white.

    16-bit and CMYK images become 8-bit RGB; colour profiles are not applied; of an animation the first frame is
    taken.

    Raises:
        ValueError: the bytes are no PNG, JPEG, WebP, BMP or GIF, are damaged, or hold more than `most` pixels.
    """
    return _decoded(file, to_rgb, most)


def decode_transparency(file: Path | BinaryIO) -> Image.Image | None:
    """Where an image is transparent, by more than half: white on black, RGB, upright; None where it is nowhere.

    Raises:
        ValueError: as `decode_image`.
    """

    def seen(image: Image.Image) -> Image.Image | None:
        transparent = np.array(image.convert("RGBA").getchannel("A")) < 128
        return Image.fromarray(transparent).convert("RGB") if transparent.any() else None

    return _decoded(file, seen, MAX_PIXELS)


def _decoded(file: Path | BinaryIO, read: Callable[[Image.Image], Made], most: int) -> Made:
    """What `read` makes of an image that was turned upright."""
    try:
        with warnings.catch_warnings():  # Pillow warns of what is refused below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
        with image:
            if image.width * image.height > most:
                raise ValueError(f"{image.width}x{image.height} is more than {most} pixels")
            return read(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise nearly anything on damaged bytes: OSError, SyntaxError, struct.error
        raise ValueError(f"image: it cannot be decoded ({error}); it expects {TAKEN}.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode that these formats decode to into RGB; transparency is composited on white."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips where it should scale
        transparent = image.info.get("transparency")
        grey = np.asarray(image)
        image = Image.fromarray((grey.astype(np.float32) / 257).round().astype(np.uint8))
        if transparent is not None:
            image = Image.merge("LA", (image, Image.fromarray(np.where(grey == transparent, 0, 255).astype(np.uint8))))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def fitted(image: Image.Image, height: int, width: int, at: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """Bring the largest crop of an image with the shape of (height, width) to that size, with Lanczos (antialiased).

    It is the image that resizing until it covers (height, width) and then cropping gives, but cropped first: so a
    long, thin image costs no more memory than a square one.

    Args:
        image: RGB, of any size; a smaller one is enlarged.
        at: where the crop lies along x and y: 0 left or top, 0.5 the centre, 1 right or bottom.
    """
    scale = min(image.width / width, image.height / height)
    box_width, box_height = width * scale, height * scale
    left, top = (image.width - box_width) * at[0], (image.height - box_height) * at[1]
    right, bottom = min(left + box_width, image.width), min(top + box_height, image.height)
    return image.resize((width, height), Image.Resampling.LANCZOS, (left, top, right, bottom))


def as_tensor(image: Image.Image) -> Tensor:
    """RGB to float32 (3, H, W) in [-1, 1]."""
    return from_bytes(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous())


def in_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8 on the CPU."""
    return to_uint8(images.float() / 2 + 0.5).cpu()


def from_bytes(images: Tensor) -> Tensor:
    """uint8 as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
