"""Pictures inside a page: small ones lossless and crisp, large ones at the size that they are shown at."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image

CRISP_BELOW = 128  # pixels a side: smaller pictures are enlarged by whole pixels, lossless


def as_pictures(pictures: Any) -> np.ndarray:
    """uint8 (N, 3, H, W), an array or a tensor on the CPU, as an array.

    Raises:
        ValueError: it is of another kind or shape, or there is no picture.
    """
    array = np.asarray(pictures)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] != 3 or 0 in array.shape:
        raise ValueError(f"pictures: got {array.dtype} {array.shape}, takes uint8 (N, 3, H, W) with at least 1 picture.")
    return array


def grid(pictures: Any, *, columns: int = 8, gap: int = 2, largest: int | None = None) -> Image.Image:
    """Pictures uint8 (N, 3, H, W) row by row on a transparent ground.

    Args:
        gap: pixels between neighbours.
        largest: pictures with a longer side are made smaller to this many pixels.

    Raises:
        ValueError: `pictures` is no such array.
    """
    images = [_fitted(picture, largest) for picture in as_pictures(pictures)]
    width, height = images[0].size
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    canvas = Image.new("RGBA", (columns * (width + gap) - gap, rows * (height + gap) - gap), (0, 0, 0, 0))
    for number, image in enumerate(images):
        canvas.paste(image, (number % columns * (width + gap), number // columns * (height + gap)))
    return canvas


def data_uri(image: Image.Image, *, lossless: bool) -> str:
    """The image as a `data:` address: PNG, or WebP, a twentieth of its size, where it need not be `lossless`."""
    out = io.BytesIO()
    if lossless:
        image.save(out, "PNG", optimize=True)
    else:
        image.save(out, "WEBP", quality=85)
    kind = "png" if lossless else "webp"
    return f"data:image/{kind};base64," + base64.b64encode(out.getvalue()).decode()


def crisp(pictures: np.ndarray) -> bool:
    """Whether pictures (N, 3, H, W) are small enough to be shown by whole pixels."""
    return max(pictures.shape[2:]) < CRISP_BELOW


def _fitted(picture: np.ndarray, largest: int | None) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    if largest is not None and max(image.size) > largest:
        scale = largest / max(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    return image
