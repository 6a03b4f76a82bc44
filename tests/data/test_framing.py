import numpy as np
import pytest
from PIL import Image

from gendistill.data.sources.framing import Framing, bucket_sizes, nearest_size


@pytest.mark.parametrize(("resolution", "multiple"), [(1024, 64), (512, 64), (32, 8), (64, 64)])
def test_buckets_have_about_one_area_and_edges_that_the_network_takes(resolution, multiple):
    sizes = bucket_sizes((resolution, resolution), multiple)
    assert (resolution, resolution) in sizes
    assert {(width, height) for height, width in sizes} == set(sizes)
    for height, width in sizes:
        assert height % multiple == width % multiple == 0
        assert 0.5 <= height / width <= 2
        assert resolution**2 - multiple * max(height, width) < height * width <= resolution**2


def test_buckets_of_sdxl_are_among_ours():
    ours = set(bucket_sizes((1024, 1024), 64))  # Podell et al. 2023, appendix I, as far as 1:2
    assert {(768, 1344), (832, 1216), (896, 1152), (960, 1088), (1024, 1024), (1152, 896), (1344, 768)} <= ours


def test_a_image_goes_to_the_bucket_that_is_nearest_as_a_factor():
    sizes = ((24, 40), (32, 32), (40, 24))
    assert nearest_size(sizes, 1.0) == (32, 32)
    assert nearest_size(sizes, 0.7) == (24, 40)
    assert nearest_size(sizes, 1 / 0.7) == (40, 24)
    assert nearest_size(sizes, 100) == (40, 24)


def test_a_resolution_that_buckets_cannot_have_is_a_sentence():
    with pytest.raises(ValueError, match=r"data\.resolution 500: expects a multiple of 64 with data\.crop=buckets"):
        Framing.from_settings("buckets", (500, 500), 64, 0)


def test_a_framed_image_is_of_its_buckets_size_and_loses_little():
    framing = Framing.from_settings("buckets", (32, 32), 8, 0)
    assert framing.frame(Image.new("RGB", (50, 30)), "a").size == (40, 24)
    assert framing.frame(Image.new("RGB", (30, 900)), "b").size == (24, 40)


def test_a_random_crop_is_a_place_that_seed_and_key_decide():
    ramp = Image.fromarray(np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 20, 0).repeat(3, 2))

    def left(seed, key):
        return Framing.from_settings("random", (20, 20), 1, seed).frame(ramp, key).getpixel((0, 0))[0]

    places = [left(0, str(key)) for key in range(300)]
    assert places == [left(0, str(key)) for key in range(300)]
    assert places != [left(1, str(key)) for key in range(300)]
    assert min(places) < 10
    assert max(places) > 170
    assert np.mean(places) == pytest.approx(90, abs=10)
