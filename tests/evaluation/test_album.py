"""What was sampled once is not sampled again, and is what would be sampled."""

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


def drawn_anew(sampler, prompts, seeds, steps=2):
    return torch.cat([to_uint8(batch) for batch in sampler.images(prompts, seeds, num_inference_steps=steps, guidance_scale=1)])


def of(image_cache, prompts=PROMPTS, seeds=SEEDS):
    return torch.cat(list(image_cache.images(prompts, seeds)))


def test_an_album_holds_what_the_sampler_samples(sampler, tmp_path):
    first = of(ImageCache(tmp_path, sampler, 2, 1.0))
    assert torch.equal(first, drawn_anew(sampler, PROMPTS, SEEDS))
    assert torch.equal(of(ImageCache(tmp_path, sampler, 2, 1.0)), first)


def test_only_what_is_missing_or_damaged_is_sampled(sampler, tmp_path):
    image_cache = ImageCache(tmp_path, sampler, 2, 1.0)
    images = of(image_cache)
    files = sorted(image_cache.store.folder.glob("*.safetensors"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:40])
    written = {file: file.stat().st_mtime_ns for file in files[2:]}
    difference = of(image_cache).int() - images.int()
    assert difference.abs().max() <= 1  # an image sampled in another batch may round otherwise
    assert {file: file.stat().st_mtime_ns for file in files[2:]} == written
    assert len(list(image_cache.store.folder.glob("*.safetensors"))) == 3


def test_another_number_of_steps_guidance_scheduler_or_weight_has_another_album(sampler, tiny_folder, tmp_path):
    keys = {ImageCache.key_of(sampler, 2, 1.0), ImageCache.key_of(sampler, 3, 1.0), ImageCache.key_of(sampler, 2, 2.0)}
    other = FewStepSampler.from_pretrained(tiny_folder)
    assert ImageCache.key_of(other, 2, 1.0) in keys
    other.pipeline.scheduler.register_to_config(steps_offset=7)
    keys.add(ImageCache.key_of(other, 2, 1.0))
    changed = FewStepSampler.from_pretrained(tiny_folder)
    next(changed.pipeline.unet.parameters()).data += 1e-3
    keys.add(ImageCache.key_of(changed, 2, 1.0))
    assert len(keys) == 5


def test_the_time_of_a_image_counts_what_was_sampled_and_not_what_was_read(sampler, tmp_path):
    image_cache = ImageCache(tmp_path, sampler, 2, 1.0)
    assert image_cache.seconds_per_image is None
    of(image_cache)
    seconds = image_cache.seconds_per_image
    of(image_cache)
    assert image_cache.seconds_per_image == seconds > 0


def test_the_album_of_a_model_is_the_same_in_every_process(tiny_folder, tmp_path):
    """Sets that diffusers keeps in a config come in another order in each."""
    told = (
        "import sys; from diffusers import DPMSolverMultistepScheduler as Solver\n"
        "from gendistill.samplers import FewStepSampler; from gendistill.evaluation.image_cache import ImageCache\n"
        "sampler = FewStepSampler.from_pretrained(sys.argv[1])\n"
        "sampler.pipeline.scheduler = Solver.from_config(sampler.pipeline.scheduler.config)\n"
        "print(ImageCache.key_of(sampler, 2, 1.0))"
    )
    keys = {
        subprocess.run(
            [sys.executable, "-c", told, str(tiny_folder)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        ).stdout
        for seed in (1, 2, 3)
    }
    assert len(keys) == 1
