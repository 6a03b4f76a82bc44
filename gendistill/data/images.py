"""Decode image files to RGB images and to the tensors that an encoder expects."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gendistill.samplers import to_uint8

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".jfif", ".jpe", ".apng")

# An explicit list: Pillow otherwise tries every decoder, and some of them (EPS) start another program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"  # first bytes
METADATA_MARKERS = (*range(0xE1, 0xEE), 0xEF, 0xFE)  # of JPEG
SHORTEST = {0xE0: 16, 0xEE: 14}  # lengths of the segments of JFIF and Adobe
ORIENTATION = 0x0112  # in EXIF data
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Result = TypeVar("Result")
FORMAT_NAMES = "PNG, JPEG, WebP, BMP or GIF"

# Pillow's warning level, a quarter of a gigabyte in 24-bit colour: a few kilobytes of PNG can decode to far more.
MAX_PIXELS = 89_478_485


def decode_image(file: Path | BinaryIO, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to RGB, upright (EXIF orientation), with transparency composited on white.

    16-bit and CMYK images become 8-bit RGB; colour profiles are not applied; an animation gives its first frame.

    Raises:
        ValueError: the file is not a PNG, JPEG, WebP, BMP or GIF, is damaged, or has more than `max_pixels` pixels.
    """
    return _decoded(file, to_rgb, max_pixels)


def decode_transparency(file: Path | BinaryIO) -> Image.Image | None:
    """Mask of the pixels that are more than half transparent: white on black, RGB, upright; None without such pixels.

    Raises:
        ValueError: as `decode_image`.
    """

    def mask_of(image: Image.Image) -> Image.Image | None:
        transparent = np.array(image.convert("RGBA").getchannel("A")) < 128
        return Image.fromarray(transparent).convert("RGB") if transparent.any() else None

    return _decoded(file, mask_of, MAX_PIXELS)


def _decoded(file: Path | BinaryIO, read: Callable[[Image.Image], Result], max_pixels: int) -> Result:
    """The result of `read` for the upright image."""
    try:
        try:
            return _opened(file, read, max_pixels)
        except (OSError, SyntaxError, ValueError, struct.error):
            if (plain := _without_metadata(file)) is None:
                raise
            return _opened(plain, read, max_pixels)
    except Exception as error:  # decoders raise nearly anything on damaged bytes: OSError, SyntaxError, struct.error
        raise ValueError(f"image: cannot be decoded ({_reason(error)}); expects {FORMAT_NAMES}.") from error


def _opened(file: Path | BinaryIO, read: Callable[[Image.Image], Result], max_pixels: int) -> Result:
    with warnings.catch_warnings():  # Pillow warns of the images that are rejected below
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(file, formats=FORMATS)
    with image:
        if image.width * image.height > max_pixels:
            raise ValueError(f"{image.width}x{image.height} is more than {max_pixels} pixels")
        return read(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """The image turned upright by its EXIF orientation; as it is where the EXIF data cannot be read."""
    image.load()
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # the pixels are sound: they have been decoded
        orientation = None
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _without_metadata(file: Path | BinaryIO) -> BinaryIO | None:
    """A PNG without damaged or needless chunks, a JPEG without metadata segments; None for other formats and damaged pixels.

    Pillow reads neither a PNG with a wrong checksum in a chunk of metadata nor one with more than a megabyte of text.
    """
    if isinstance(file, Path):
        data = file.read_bytes()
    else:
        file.seek(0)
        data = file.read()
    if data.startswith(PNG):
        kept = [PNG, *_png_chunks(data)]
    elif data.startswith(JPEG):
        kept = [JPEG, *_jpeg_segments(data)]
    else:
        return None
    plain = b"".join(kept)
    return io.BytesIO(plain) if len(plain) < len(data) else None


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """The chunks that determine the pixels; an invalid checksum of the pixels themselves is kept."""
    at = len(PNG)
    while at + 12 <= len(data):
        (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        chunk = data[at : at + 12 + length]
        is_sound = len(chunk) == 12 + length and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if kind[:1].isupper() or (is_sound and kind in (b"tRNS", b"eXIf")):
            yield chunk
        at += len(chunk)
    yield data[at:]


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    """The segments without APP1 to APP13, APP15 and comments: all but JFIF's and Adobe's describe no pixels."""
    at = len(JPEG)
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # the pixels follow
            break
        if marker not in METADATA_MARKERS and not (marker in SHORTEST and length < SHORTEST[marker]):
            yield data[at : at + 2 + length]
        at += 2 + length
    yield data[at:]


def _reason(error: Exception) -> str:
    """Why an image cannot be decoded, without the file's name, which the message has already."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image, or its first bytes are damaged"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS} pixels"
    return (error.strerror or "" if isinstance(error, OSError) else "") or str(error) or type(error).__name__


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode of these formats to RGB; transparency is composited on white."""
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
    """Resize the largest crop with the aspect ratio of (height, width) to that size, with Lanczos (antialiased).

    The result equals resizing the image until it covers (height, width) and then cropping, but the crop comes first: a long,
    thin image needs no more memory than a square one.

    Args:
        image: RGB, of any size; a smaller image is enlarged.
        at: position of the crop along x and y: 0 left or top, 0.5 the centre, 1 right or bottom.
    """
    scale = min(image.width / width, image.height / height)
    box_width, box_height = width * scale, height * scale
    left, top = (image.width - box_width) * at[0], (image.height - box_height) * at[1]
    right, bottom = min(left + box_width, image.width), min(top + box_height, image.height)
    return image.resize((width, height), Image.Resampling.LANCZOS, (left, top, right, bottom))


def as_tensor(image: Image.Image) -> Tensor:
    """An RGB image as float32 (3, H, W) in [-1, 1]."""
    return from_bytes(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous())


def in_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8 on the CPU."""
    return to_uint8(images.float() / 2 + 0.5).cpu()


def from_bytes(images: Tensor) -> Tensor:
    """uint8 images as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
