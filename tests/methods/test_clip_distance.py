"""CLIP's view of latents: their images, through which gradients pass."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.functional import pil_to_tensor

from gendistill.data.sources.source import open_source
from gendistill.diffusion.teacher import load_teacher
from gendistill.methods.clip_distance import ClipDistance
from gendistill.metrics.distances.clip_score import load_scorer
from gendistill.run.config import load_config
from gendistill.samplers.codec import PixelCodec


@pytest.fixture(scope="module")
def tiny_sd():
    return load_teacher("assets/tiny-sd")


@pytest.fixture(scope="module")
def images():
    """Eight emoji, uint8 (8, 3, H, W)."""
    source = iter(open_source("assets/emoji/heldout-*.tar.gz"))
    return torch.stack([pil_to_tensor(next(source).image) for _ in range(8)])


@pytest.fixture(scope="module")
def scorer():
    return load_scorer("assets/tiny-clip")


def test_images_are_seen_as_the_clip_score_sees_them(images, scorer):
    ours = ClipDistance(PixelCodec(), scorer).embed(images / 127.5 - 1)
    assert F.cosine_similarity(ours, scorer.embed_images(images)).min() > 0.99


def test_latents_come_to_mean_what_the_teachers_mean(tiny_sd, images, scorer):
    distance = ClipDistance(tiny_sd.codec, scorer)
    theirs = tiny_sd.codec.moments(F.interpolate(images / 127.5 - 1, tiny_sd.size))[:, : tiny_sd.codec.channels]
    ours = (theirs.flip(0) + 0.1).requires_grad_(True)
    optimizer = torch.optim.Adam([ours], 0.05)
    distances = []
    for _ in range(12):
        distances.append(distance(ours, theirs))
        optimizer.zero_grad()
        distances[-1].backward()
        optimizer.step()
    assert distance(theirs, theirs) < 1e-3
    assert distances[0] > 0.2
    assert distances[-1] < 0.5 * distances[0]
    networks = (tiny_sd.codec.vae, distance.tower)
    assert all(parameter.grad is None for network in networks for parameter in network.parameters())


def test_a_decoder_in_half_precision_is_refused():
    settings = {"method": "latent_alignment", "align.semantic.clip": 0.1, "dtype": "float16"}
    with pytest.raises(
        ValueError, match=r"align.semantic.clip: .* overflows in dtype 'float16'; expects 'float32' or 'bfloat16'"
    ):
        load_config(None, settings)
    load_config(None, settings | {"dtype": "bfloat16"})
