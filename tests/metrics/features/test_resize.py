import io

import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer, make_resizer
from PIL import Image
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from gendistill.data.images import decode_image
from gendistill.metrics.features.resize import Resize, resize_clean, resize_legacy

MODES = ["RGB", "L", "LA", "P", "CMYK", "I;16", "RGBA", "1"]
SIZES = [(31, 47), (299, 299), (1, 5), (413, 300), (640, 111)]


def images_of(held_out):
    """Emoji enlarged, turned and laid over gradients, of odd sizes."""
    images = held_out[0]
    for number, (width, height) in enumerate(SIZES):
        emoji = Image.fromarray(images[number * 50].permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BICUBIC)
        y, x = np.mgrid[0:height, 0:width]
        waves = np.stack([x * 7 % 256, y * 5 % 256, (x * y + 31 * number) % 256], axis=2)
        yield Image.blend(emoji.transpose(Image.Transpose.ROTATE_180), Image.fromarray(waves.astype(np.uint8)), 0.4)


def in_mode(image, mode):
    """What decoding gives of a file of that mode: RGB."""
    file = io.BytesIO()
    if mode == "I;16":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(file, "PNG")
    elif mode in ("LA", "RGBA"):
        alpha = Image.linear_gradient("L").resize(image.size)
        with_alpha = image.convert(mode)
        with_alpha.putalpha(alpha)
        with_alpha.save(file, "PNG")
    elif mode == "CMYK":
        image.convert("CMYK").save(file, "JPEG", quality=95)
    else:
        image.convert(mode).save(file, "PNG")
    file.seek(0)
    return decode_image(file)


def as_batch(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("mode", MODES)
def test_clean_equals_clean_fid_to_the_last_bit(held_out, mode):
    theirs = build_resizer("clean")
    for original in images_of(held_out):
        image = in_mode(original, mode)
        ours = Resize("clean", 299)(as_batch(image))
        assert ours.dtype == torch.float32
        assert np.array_equal(ours[0].permute(1, 2, 0).numpy(), theirs(np.asarray(image)))


def test_the_lanczos_filter_equals_clean_fids_lanczos_to_the_last_bit(held_out):
    theirs = make_resizer("PIL", False, "lanczos", (224, 224))
    for image in images_of(held_out):
        ours = Resize("clean-lanczos", 224)(as_batch(image))
        assert np.array_equal(ours[0].permute(1, 2, 0).numpy(), theirs(np.asarray(image)))


def test_the_emoji_network_sees_larger_images_as_its_reference_was_made_and_its_own_size_unchanged(held_out, extractor):
    theirs = make_resizer("PIL", False, "lanczos", (32, 32))
    for image in images_of(held_out):
        seen = extractor.prepare(as_batch(image))[0].permute(1, 2, 0).numpy()
        assert np.array_equal(seen, theirs(np.asarray(image)) / np.float32(127.5) - 1)
    assert torch.equal(extractor.prepare(held_out[0][:5]), held_out[0][:5].float() / 127.5 - 1)


def test_images_of_a_batch_are_resized_each_for_itself(held_out):
    images = held_out[0][:5]
    together = resize_clean(images, 64)
    assert torch.equal(together, torch.cat([resize_clean(image[None], 64) for image in images]))
    assert together.min() >= 0
    assert together.max() <= 255
    assert together.frac().any()  # not rounded


def test_legacy_equals_torch_fidelity_to_the_last_bit(held_out):
    for image in images_of(held_out):
        for size in (299, 17):
            expected = interpolate_bilinear_2d_like_tensorflow1x(as_batch(image).float(), (size, size), align_corners=False)
            assert torch.equal(resize_legacy(as_batch(image), size), expected)


def test_legacy_halves_by_taking_every_second_pixel():
    ramp = torch.arange(64, dtype=torch.float32).reshape(1, 1, 8, 8)
    assert torch.equal(resize_legacy(ramp, 4), ramp[:, :, ::2, ::2])


def test_legacy_leaves_what_it_is_given_as_it_was():
    images = torch.rand(1, 3, 9, 9)
    before = images.clone()
    resize_legacy(images, 5)
    resize_legacy(images, 9)
    assert torch.equal(images, before)


def test_without_resizing_images_become_floats_alone(held_out):
    images = held_out[0][:2]
    assert torch.equal(Resize("none")(images), images.float())


@pytest.mark.parametrize(
    ("convention", "size", "sentence"),
    [
        ("claen", 299, "did you mean 'clean'"),
        ("clean", None, "size: got None"),
        ("legacy", 0, "at least 1 pixel"),
        ("none", 299, "expects None"),
    ],
)
def test_wrong_settings_are_named(convention, size, sentence):
    with pytest.raises(ValueError, match=sentence):
        Resize(convention, size)
