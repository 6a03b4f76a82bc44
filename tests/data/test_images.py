import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from gendistill.data.images import as_tensor, decode_image, decode_transparency, fitted


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return file


def test_transparency_is_composited_on_white():
    half_black = Image.new("RGBA", (4, 4), (0, 0, 0, 51))
    assert decode_image(encoded(half_black)).getpixel((0, 0)) == (204, 204, 204)


def test_where_a_image_is_transparent_is_white_on_black():
    image = Image.new("RGBA", (4, 2), (9, 9, 9, 255))
    image.putpixel((1, 0), (9, 9, 9, 100))
    image.putpixel((2, 0), (9, 9, 9, 200))
    seen = decode_transparency(encoded(image))
    assert [seen.getpixel((x, 0)) for x in range(4)] == [(0, 0, 0), (255, 255, 255), (0, 0, 0), (0, 0, 0)]
    assert decode_transparency(encoded(image.convert("RGB"))) is None


def test_a_transparent_palette_colour_is_white():
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 1), 1)
    image = decode_image(encoded(palette, transparency=0))
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((1, 1)) == (0, 0, 255)


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    grey = np.array([[0, 32896, 65535]], dtype=np.uint16)
    image = decode_image(encoded(Image.fromarray(grey)))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]


def test_the_transparent_grey_of_a_sixteen_bit_image_is_white():
    grey = np.array([[0, 32896, 65535]], dtype=np.uint16)
    image = decode_image(encoded(Image.fromarray(grey), transparency=0))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [255, 128, 255]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    image = decode_image(encoded(frames[0], format, save_all=True, append_images=frames[1:], lossless=True))
    assert image.getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_a_png_becomes_rgb(mode):
    assert decode_image(encoded(Image.new("RGB", (5, 3), "white").convert(mode))).mode == "RGB"


def test_cmyk_becomes_rgb():
    image = decode_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(np.array(image.getpixel((4, 4))) - [255, 0, 0]).max() < 8


def test_exif_orientation_turns_the_image_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    assert decode_image(encoded(Image.new("RGB", (6, 2)), "JPEG", exif=exif)).size == (2, 6)


def segment(marker, data):
    """A JPEG with a segment of its own after the first marker."""
    start, rest = (lambda whole: (whole[:2], whole[2:]))(encoded(RED, "JPEG").read())
    return start + struct.pack(">BBH", 255, marker, len(data) + 2) + data + rest


def chunk_text(**options):
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "v" * 2_000_000, zip=True)
    return encoded(RED, pnginfo=info, **options).read()


def wrong_checksum(data, kind):
    at = data.index(kind)
    end = at + 4 + struct.unpack(">I", data[at - 4 : at])[0]
    return data[:end] + b"zzzz" + data[end + 4 :]


RED = Image.new("RGB", (60, 40), (200, 30, 30))
TURNED = Image.Exif()
TURNED[0x0112] = 6
SOUND = {
    "PNG, EXIF without a TIFF header": encoded(RED, exif=b"\x00\x08\x00\x02\x01\x12\x00\x03").read(),
    "WebP, EXIF without a TIFF header": encoded(RED, "WEBP", exif=b"xyzgarbage").read(),
    "JPEG, EXIF of garbage": segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
    "JPEG, Photoshop's data of garbage": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\xff\xff\xff"),
    "JPEG, several images of garbage": segment(0xE2, b"MPF\0garbage"),
    "JPEG, a short segment of JFIF": segment(0xE0, b"JFIF\0\1"),
    "JPEG, a short segment of Adobe": segment(0xEE, b"Adobe"),
    "PNG, 2 MB of zipped text": chunk_text(),
    "PNG, colour profile of 3 MB": encoded(RED, icc_profile=b"x" * 3_000_000).read(),
    "PNG, a wrong checksum of the resolution": wrong_checksum(encoded(RED, dpi=(72, 72)).read(), b"pHYs"),
    "PNG, a wrong checksum of the transparency": wrong_checksum(encoded(RED, transparency=(200, 30, 30)).read(), b"tRNS"),
    "PNG without its end": encoded(RED).read()[:-12],
}


@pytest.mark.parametrize("name", SOUND)
def test_unsound_or_huge_metadata_around_sound_pixels_is_ignored(name):
    image = decode_image(io.BytesIO(SOUND[name]))
    assert image.size == (60, 40)
    assert np.abs(np.array(image.getpixel((30, 20))) - [200, 30, 30]).max() < 4


def test_sound_metadata_beside_huge_ones_still_count():
    assert decode_image(io.BytesIO(chunk_text(exif=TURNED.tobytes()))).size == (40, 60)
    assert decode_image(io.BytesIO(chunk_text(transparency=(200, 30, 30)))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("damage", [b"", b"not an image", encoded(Image.new("RGB", (64, 64), "red")).read()[:60]])
def test_damaged_bytes_are_a_value_error(damage):
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_image(io.BytesIO(damage))


def test_a_format_that_starts_other_programs_is_not_tried():
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_image(encoded(Image.new("RGB", (4, 4)), "EPS"))


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    header = b"IHDR" + struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"IDAT" + zlib.compress(b"\0" * 1000)
    bomb += struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    with pytest.raises(ValueError, match="12000x12000 is more than 89478485 pixels"):
        decode_image(io.BytesIO(bomb))
    with pytest.raises(ValueError, match="it has more than 89478485 pixels"):
        decode_image(encoded(Image.new("1", (20_000, 10_000))))


def test_a_tensor_spans_minus_one_to_one():
    image = Image.fromarray(np.array([[[0, 0, 0], [255, 255, 255]]] * 2, dtype=np.uint8))
    tensor = as_tensor(image)
    assert tensor.shape == (3, 2, 2)
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor[0], torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))


def test_a_square_is_the_centre_of_the_longer_side():
    wide = Image.new("RGB", (60, 20), "black")
    wide.paste("white", (20, 0, 40, 20))
    assert as_tensor(fitted(wide, 20, 20)).min() == 1


def test_a_square_is_resizing_the_shortest_side_and_cropping_the_centre():
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    resized = image.resize((48, 32), Image.Resampling.LANCZOS).crop((8, 0, 40, 32))
    inner = (np.array(fitted(image, 32, 32), int) - np.array(resized))[:, 3:-3]  # the crop's own edge has other neighbours
    assert np.abs(inner).max() <= 2


@pytest.mark.parametrize("size", [(3, 5), (1, 50_000)])
def test_a_small_image_is_enlarged_and_a_hair_takes_no_more_memory_than_a_square(size):
    assert fitted(Image.new("RGB", size), 64, 64).size == (64, 64)


def test_a_crop_of_another_shape_covers_the_image_as_far_as_it_can():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    assert np.array_equal(fitted(noise, 64, 96), noise)
    assert np.array_equal(fitted(noise, 64, 32, at=(1, 0.5)), noise.crop((64, 0, 96, 64)))
    assert np.array_equal(fitted(noise, 16, 96, at=(0.5, 0)), noise.crop((0, 0, 96, 16)))
