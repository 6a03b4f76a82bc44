import pytest
import torch
from diffusers import AutoencoderKL

from gendistill.samplers.codec import LatentCodec, PixelCodec, sample_moments


@pytest.fixture
def images(generator):
    return torch.rand(3, 3, 32, 32, generator=generator) * 2 - 1


@torch.no_grad()
def test_a_latent_sampled_from_moments_is_the_one_that_diffusers_training_scripts_sample(teacher, images):
    vae = teacher.pipeline.vae
    theirs = vae.encode(images).latent_dist.sample(torch.Generator().manual_seed(5)) * vae.config.scaling_factor
    noise = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(sample_moments(teacher.codec.moments(images), noise), theirs, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_latents_decode_to_what_the_pipeline_shows(teacher):
    def generate(output_type):
        generator = torch.Generator().manual_seed(0)
        return teacher.pipeline("food", num_inference_steps=2, generator=generator, output_type=output_type).images

    torch.testing.assert_close(teacher.codec.decode(generate("latent")) / 2 + 0.5, generate("pt"), atol=1e-6, rtol=0)


@torch.no_grad()
def test_scaling_and_shift_are_undone_by_decoding(images):
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=[32], norm_num_groups=8, scaling_factor=1.5, shift_factor=0.1).eval()
    codec = LatentCodec(vae)
    mean = codec.moments(images).chunk(2, dim=1)[0]
    torch.testing.assert_close(mean, (vae.encode(images).latent_dist.mean - 0.1) * 1.5)
    expected = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    torch.testing.assert_close(codec.decode(mean), expected, atol=1e-5, rtol=1e-5)


def test_the_latent_shape_is_that_of_real_latents(teacher, images):
    mean = teacher.codec.moments(images).chunk(2, dim=1)[0]
    assert tuple(mean.shape[1:]) == teacher.codec.latent_shape(32) == (4, 8, 8)
    assert teacher.resolution == 32


def test_pixels_are_their_own_latents(images):
    codec = PixelCodec()
    noise = torch.randn_like(images)
    assert torch.equal(codec.decode(sample_moments(codec.moments(images), noise)), images)
    assert codec.latent_shape(32) == tuple(images.shape[1:])
