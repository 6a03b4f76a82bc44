"""What may be asked of a server; a stranger's nonsense is one sentence that names the field."""

import pytest
from PIL import Image

from gendistill.serve.image_request import Offer, RefusedError, RequestLimits, read_request


def no_single_steps(steps, guidance_scale):
    if steps == 1:
        raise ValueError("steps 1: too few")


OFFERS = {
    "fast": Offer("fast", 4, 1.0, (32, 48), multiple=8, images=True, allows=no_single_steps),
    "classes": Offer("classes", 1, 1.0, (32, 32), prompts=("cat", "dog")),
    "noise": Offer("noise", 1, 1.0, (32, 32), prompts=("",)),
}
LIMITS = RequestLimits()
GREY = Image.new("RGB", (20, 10), "grey")


def test_a_request_that_says_little_gets_the_models_own():
    read = read_request({"prompt": "a cat"}, OFFERS, LIMITS)
    assert (read.model, read.count, read.steps, read.guidance_scale, read.size) == ("fast", 1, 4, 1.0, (32, 48))
    assert 0 <= read.seed < 2**31
    assert read_request({"prompt": "a cat"}, OFFERS, LIMITS).seed != read.seed


def test_a_size_is_width_by_height_and_other_models_have_other_prompts():
    read = read_request({"prompt": "a", "size": "16x48", "n": 2.0, "seed": 3, "guidance_scale": 2}, OFFERS, LIMITS)
    assert (read.size, read.count, read.seed, read.guidance_scale) == ((48, 16), 2, 3, 2.0)
    assert read_request({"prompt": "a", "size": "64x64"}, OFFERS, RequestLimits(edge=64)).size == (64, 64)
    assert read_request({"prompt": "dog", "model": "classes", "size": "auto"}, OFFERS, LIMITS).prompt == "dog"
    assert read_request({"prompt": "anything", "model": "noise"}, OFFERS, LIMITS).model == "noise"


def test_a_image_to_begin_at_and_its_mask_become_as_large_as_what_is_sampled():
    half = Image.new("RGB", (20, 10))
    half.paste("white", (0, 0, 10, 10))
    read = read_request({"prompt": "a", "image": GREY, "mask": half}, OFFERS, LIMITS)
    assert read.image.shape == (3, 32, 48)
    assert read.image.unique().tolist() == pytest.approx([128 / 255])
    assert read.mask.shape == (1, 32, 48)
    assert read.mask[0, 16].tolist() == [1.0] * 24 + [0.0] * 24
    assert read.strength == 0.8


def test_only_requests_of_one_kind_go_together():
    ask = {"prompt": "a", "seed": 1}
    alike = [read_request({**ask, **more}, OFFERS, LIMITS).goes_with for more in ({}, {"prompt": "b", "seed": 2, "n": 3})]
    others = [{"steps": 3}, {"guidance_scale": 2}, {"size": "32x32"}, {"model": "noise"}, {"image": GREY}]
    assert alike[0] == alike[1]
    assert alike[0] not in [read_request({**ask, **more}, OFFERS, LIMITS).goes_with for more in others]


@pytest.mark.parametrize(
    ("given", "field", "sentence"),
    [
        ({"prompt": None}, "prompt", "prompt: expects a text"),
        ({"prompt": ["a"]}, "prompt", "prompt: expects a text"),
        ({"prompt": "x" * 2**20}, "prompt", "prompt: 1,048,576 characters; expects at most 2,000"),
        ({"prompt": "bird", "model": "classes"}, "prompt", "prompt 'bird': expects one of cat, dog"),
        ({"model": "/etc/passwd"}, "model", "model '/etc/passwd': expects fast or classes or noise"),
        ({"model": "x" * 2**20}, "model", "model 'xxxxx"),
        ({"model": ["fast"]}, "model", "model ['fast']: expects fast"),
        ({"steps": -1}, "steps", "steps -1: expects a whole number from 1 to 100"),
        ({"steps": True}, "steps", "steps True: expects a whole number from 1 to 100"),
        ({"steps": 1}, "steps", "steps 1: too few"),
        ({"n": 10_000}, "n", "n 10000: expects a whole number from 1 to 8"),
        ({"n": 1.5}, "n", "n 1.5: expects a whole number from 1 to 8"),
        ({"seed": -5}, "seed", "seed -5: expects a whole number from 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "guidance_scale nan: expects a number from 0 to 30"),
        ({"guidance_scale": "7"}, "guidance_scale", "guidance_scale '7': expects a number from 0 to 30"),
        ({"size": "9999x9999"}, "size", "size '9999x9999': expects WIDTHxHEIGHT, multiples of 8 up to 48, such as 48x32"),
        ({"size": "12x16"}, "size", "size '12x16': expects WIDTHxHEIGHT"),
        ({"size": "0x0"}, "size", "size '0x0': expects WIDTHxHEIGHT"),
        ({"size": 512}, "size", "size 512: expects WIDTHxHEIGHT"),
        ({"size": "x" * 1000}, "size", "size 'xxxxx"),
        ({"size": "64x64", "model": "noise"}, "size", "size '64x64': expects 32x32"),
        ({"image": "a.png"}, "image", "image: expects the file of an image"),
        ({"image": GREY, "mask": "a.png"}, "mask", "mask: expects the file of an image"),
        ({"mask": GREY}, "mask", "mask: expects an image, the image to generate in"),
        ({"image": GREY, "strength": 0}, "strength", "strength 0: of 4 steps it leaves none; expects at least 0.25"),
        ({"image": GREY, "strength": "much"}, "strength", "strength 'much': expects a number from 0 to 1"),
        ({"image": GREY, "strength": 0.2}, "strength", "strength 0.2: of 4 steps it leaves none; expects at least 0.25"),
        ({"image": GREY, "model": "noise"}, "image", "image: noise begins at no images"),
    ],
)
def test_what_may_not_be_asked_is_one_sentence(given, field, sentence):
    with pytest.raises(RefusedError) as refused:
        read_request({"prompt": "a", **given}, OFFERS, LIMITS)
    assert refused.value.field == field
    assert str(refused.value).startswith(sentence)
    assert len(str(refused.value)) < 200
