"""From the bytes of a picture, of whatever kind, to an RGB picture and to the tensor that an encoder takes."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

# Named, because Pillow otherwise tries every decoder it has, and some (EPS) start another program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")

# Pillow's own warning level, a quarter of a gigabyte in 24-bit colour: a few kilobytes of PNG can ask for far more.
MAX_PIXELS = 89_478_485


def decode_picture(file: Path | BinaryIO) -> Image.Image:
    """Decode a picture as it is meant to be seen: RGB, upright (EXIF orientation), transparency on white.

    16-bit and CMYK pictures become 8-bit RGB; colour profiles are not applied; of an animation the first frame is
    taken.

    Raises:
        ValueError: the bytes are no PNG, JPEG, WebP or BMP, are damaged, or hold more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
            return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise nearly anything on damaged bytes: OSError, SyntaxError, struct.error
        raise ValueError(f"picture: it cannot be decoded ({error}); it takes PNG, JPEG, WebP or BMP.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode that PNG, JPEG, WebP and BMP decode to into RGB; transparency is composited on white."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips where it should scale
        image = Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def to_tensor(picture: Image.Image, resolution: int) -> Tensor:
    """Bring the centre square of a picture to `resolution`, with Pillow's Lanczos filter (antialiased).

    It is the picture that resizing the shortest side and cropping the centre gives, but cropped first: so a long,
    thin picture costs no more memory than a square one.

    Args:
        picture: RGB, of any size.
        resolution: R, in pixels.

    Returns:
        float32 (3, R, R) in [-1, 1].
    """
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    square = picture.resize((resolution, resolution), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous().float() / 127.5 - 1
