"""Images are sampled once, and the cached ones equal newly sampled ones."""

import os
import subprocess
import sys

import pytest
import torch

from gendistill.evaluation.image_cache import ImageCache
from gendistill.samplers import FewStepSampler, to_uint8

PROMPTS, SEEDS = ["food", "animals", "food"], [5, 6, 7]


@pytest.fixture(scope="module")
def sampler(tiny_folder):
    return FewStepSampler.from_pretrained(tiny_folder)


def newly_sampled(sampler, prompts, seeds, steps=2):
    return torch.cat([to_uint8(batch) for batch in sampler.images(prompts, seeds, num_inference_steps=steps, guidance_scale=1)])


def images_of(image_cache, prompts=PROMPTS, seeds=SEEDS):
    return torch.cat(list(image_cache.images(prompts, seeds)))


def test_a_cache_has_the_images_that_the_sampler_generates(sampler, tmp_path):
    first = images_of(ImageCache(tmp_path, sampler, 2, 1.0))
    assert torch.equal(first, newly_sampled(sampler, PROMPTS, SEEDS))
    assert torch.equal(images_of(ImageCache(tmp_path, sampler, 2, 1.0)), first)


def test_only_missing_or_damaged_images_are_sampled(sampler, tmp_path):
    image_cache = ImageCache(tmp_path, sampler, 2, 1.0)
    images = images_of(image_cache)
    files = sorted(image_cache.store.folder.glob("*.safetensors"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:40])
    written = {file: file.stat().st_mtime_ns for file in files[2:]}
    difference = images_of(image_cache).int() - images.int()
    assert difference.abs().max() <= 1  # an image sampled in another batch may round otherwise
    assert {file: file.stat().st_mtime_ns for file in files[2:]} == written
    assert len(list(image_cache.store.folder.glob("*.safetensors"))) == 3


def test_other_steps_guidance_scheduler_or_weights_have_another_key(sampler, tiny_folder, tmp_path):
    keys = {ImageCache.key_of(sampler, 2, 1.0), ImageCache.key_of(sampler, 3, 1.0), ImageCache.key_of(sampler, 2, 2.0)}
    other = FewStepSampler.from_pretrained(tiny_folder)
    assert ImageCache.key_of(other, 2, 1.0) in keys
    other.pipeline.scheduler.register_to_config(steps_offset=7)
    keys.add(ImageCache.key_of(other, 2, 1.0))
    changed = FewStepSampler.from_pretrained(tiny_folder)
    next(changed.pipeline.unet.parameters()).data += 1e-3
    keys.add(ImageCache.key_of(changed, 2, 1.0))
    assert len(keys) == 5


def test_the_time_per_image_excludes_cached_images(sampler, tmp_path):
    image_cache = ImageCache(tmp_path, sampler, 2, 1.0)
    assert image_cache.seconds_per_image is None
    images_of(image_cache)
    seconds = image_cache.seconds_per_image
    images_of(image_cache)
    assert image_cache.seconds_per_image == seconds > 0


def test_the_key_of_a_model_is_the_same_in_every_process(tiny_folder, tmp_path):
    """Sets in a scheduler's config are ordered differently in each process."""
    code = (
        "import sys; from diffusers import DPMSolverMultistepScheduler as Solver\n"
        "from gendistill.samplers import FewStepSampler; from gendistill.evaluation.image_cache import ImageCache\n"
        "sampler = FewStepSampler.from_pretrained(sys.argv[1])\n"
        "sampler.pipeline.scheduler = Solver.from_config(sampler.pipeline.scheduler.config)\n"
        "print(ImageCache.key_of(sampler, 2, 1.0))"
    )
    keys = {
        subprocess.run(
            [sys.executable, "-c", code, str(tiny_folder)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        ).stdout
        for seed in (1, 2)
    }
    assert len(keys) == 1
