"""Pixel-space models of grey and RGBA images, and with a learned variance."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from PIL import Image
from tiny_pipeline import tiny_pixel_unet

from gendistill.data.images import as_tensor, decode_image, in_bytes
from gendistill.diffusion.teacher import load_teacher
from gendistill.samplers import FewStepSampler
from gendistill.samplers.codec import PixelCodec, sample_moments
from gendistill.samplers.loading import open_pipeline
from gendistill.samplers.scheduler_of import scheduler_of


def decoded(codec, image):
    moments = codec.moments(image[None])
    return codec.decode(sample_moments(moments, torch.zeros_like(moments[:, : codec.channels])))[0]


def test_grey_images_are_pillows_grey_and_transparent_ones_are_on_white_as_their_files(tmp_path):
    image = Image.effect_noise((8, 6), 60).convert("RGB")
    image.putpixel((0, 0), (250, 10, 90))
    grey = decoded(PixelCodec(1), as_tensor(image))
    torch.testing.assert_close(grey, as_tensor(image.convert("L").convert("RGB")), atol=1 / 127.5, rtol=0)
    torch.testing.assert_close(decoded(PixelCodec(4), as_tensor(image)), as_tensor(image))
    transparent = image.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(image.size))
    transparent.save(tmp_path / "transparent.png")
    latents = torch.tensor(list(transparent.getdata())).view(6, 8, 4).permute(2, 0, 1).float()[None] / 127.5 - 1
    ours, read = PixelCodec(4).decode(latents)[0], as_tensor(decode_image(tmp_path / "transparent.png"))
    assert (in_bytes(ours).int() - in_bytes(read).int()).abs().max() <= 1


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_learned_variance_is_used_by_ddpm_alone_and_is_not_in_the_student(tmp_path, channels):
    unet = tiny_pixel_unet(in_channels=channels, out_channels=2 * channels)
    DDPMPipeline(unet, DDPMScheduler(variance_type="learned_range")).save_pretrained(tmp_path)
    opened, teacher = open_pipeline(tmp_path), load_teacher(tmp_path)
    assert teacher.network.config.out_channels == teacher.network.conv_out.out_channels == channels
    x_t = torch.randn(2, channels, 16, 16)
    t = torch.tensor([3, 700])
    assert torch.equal(teacher.network(x_t, t).sample, opened.unet(x_t, t).sample[:, :channels])
    teacher.pipeline(num_inference_steps=2, output_type="np")
    images = next(FewStepSampler(opened).images([""], [4], num_inference_steps=3))
    theirs = opened(num_inference_steps=3, generator=torch.Generator().manual_seed(4), output_type="np").images
    own = opened.unet.config.in_channels
    expected = PixelCodec(own).rgb(torch.from_numpy(theirs).permute(0, 3, 1, 2))
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
    with scheduler_of(opened, DDIMScheduler()), scheduler_of(teacher.pipeline, DDIMScheduler()):
        first, second = (next(FewStepSampler(p).images([""], [4], num_inference_steps=3)) for p in (opened, teacher.pipeline))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
