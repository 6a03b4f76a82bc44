import pytest
import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderKL,
    AutoencoderTiny,
    AutoPipelineForImage2Image,
    ConsistencyDecoderVAE,
)

from gendistill.diffusion.teacher import teacher_of
from gendistill.samplers.codec import LatentCodec, PixelCodec, sample_moments
from gendistill.samplers.loading import open_pipeline


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
    codec = LatentCodec(vae, mean=vae.config.shift_factor)  # as a family of diffusers' flow-matching pipelines does
    mean = codec.moments(images).chunk(2, dim=1)[0]
    torch.testing.assert_close(mean, (vae.encode(images).latent_dist.mean - 0.1) * 1.5)
    expected = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    torch.testing.assert_close(codec.decode(mean), expected, atol=1e-5, rtol=1e-5)


STATISTICS = {"latents_mean": [0.3, -0.2, 0.1, 0.5], "latents_std": [1.5, 0.7, 2.0, 0.9]}
TINY_LAYERS = {f"{side}_block_out_channels": (8, 8, 8) for side in ("encoder", "decoder")}
ASYMMETRIC = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "down_block_out_channels": [8, 8, 16],
    "up_block_out_channels": [8, 16, 16],
    "norm_num_groups": 4,
    "sample_size": 32,
}


@torch.no_grad()
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize(
    "make",
    [
        lambda pipeline: pipeline.vae.register_to_config(shift_factor=0.5),
        lambda pipeline: pipeline.vae.register_to_config(**STATISTICS),
        lambda pipeline: pipeline.register_modules(
            vae=AutoencoderTiny(**TINY_LAYERS, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1)).eval()
        ),
        lambda pipeline: pipeline.register_modules(vae=AsymmetricAutoencoderKL(**ASYMMETRIC, scaling_factor=0.4).eval()),
    ],
    ids=["shift", "statistics", "tiny", "asymmetric"],
)
def test_images_are_encoded_and_decoded_as_the_pipelines_of_the_family_do(family_folder, images, family, make):
    """The oracles are diffusers' own pipelines: image-to-image with no step to run, and text-to-image."""
    torch.manual_seed(0)
    pipeline = open_pipeline(family_folder(family))
    make(pipeline)
    codec, size = teacher_of(pipeline, family).codec, tuple(images.shape[2:])
    noise = torch.randn(3, *codec.latent_shape((32, 32)), generator=torch.Generator().manual_seed(5))
    img2img = AutoPipelineForImage2Image.from_pipe(pipeline)
    generator = torch.Generator().manual_seed(5)
    first = {"add_noise": False} if family == "sdxl" else {}
    encoded = img2img.prepare_latents(
        images, torch.tensor([1]), 3, 1, torch.float32, "cpu", **{"generator": generator, **first}
    )
    ours = sample_moments(codec.moments(images), noise)
    if family == "sd1":  # which always adds the noise of that timestep
        added = (
            noise if isinstance(pipeline.vae, AutoencoderTiny) else torch.randn(noise.shape, generator=generator_after(noise))
        )
        ours = pipeline.scheduler.add_noise(ours, added, torch.tensor([1]))
    torch.testing.assert_close(ours, encoded, atol=1e-5, rtol=1e-4)
    conditions = {"num_inference_steps": 1, "generator": torch.Generator().manual_seed(0), "height": size[0], "width": size[1]}
    latents = pipeline("food", output_type="latent", **conditions).images
    conditions["generator"] = torch.Generator().manual_seed(0)
    torch.testing.assert_close(
        codec.decode(latents) / 2 + 0.5, pipeline("food", output_type="pt", **conditions).images, atol=1e-5, rtol=0
    )


def generator_after(noise):
    """The generator that has sampled this noise with seed 5."""
    generator = torch.Generator().manual_seed(5)
    torch.randn(noise.shape, generator=generator)
    return generator


def test_a_decoder_that_samples_is_refused(teacher):
    teacher.pipeline.register_modules(vae=ConsistencyDecoderVAE.__new__(ConsistencyDecoderVAE))
    with pytest.raises(ValueError, match="a ConsistencyDecoderVAE is not supported; expects one of AutoencoderKL, Autoenc"):
        teacher.family.codec(teacher.pipeline)


def test_the_latent_shape_is_that_of_real_latents(teacher, images):
    mean = teacher.codec.moments(images).chunk(2, dim=1)[0]
    assert tuple(mean.shape[1:]) == teacher.codec.latent_shape((32, 32)) == (4, 8, 8)
    assert teacher.size == (32, 32)


def test_pixels_are_their_own_latents(images):
    codec = PixelCodec()
    noise = torch.randn_like(images)
    assert torch.equal(codec.decode(sample_moments(codec.moments(images), noise)), images)
    assert codec.latent_shape((32, 32)) == tuple(images.shape[1:])
