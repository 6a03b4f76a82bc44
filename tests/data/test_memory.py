"""Memory does not grow with the data: two fresh processes, one with ten times the images of the other.

Measured is the peak resident set of the whole process (VmHWM), its file-backed pages among it, over writing the cache,
reading every row of it and training on it. What the kernel keeps of files in its own page cache is not the process's.
(`ru_maxrss` would not do: it begins at the peak of the process that started this one.)
"""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from fresh_process import FreshProcess

STEPS, BATCH, PART = 200, 64, 250
TRAINED_STEPS = 20
TOKENS, WIDTH = 160, 32  # 11 kB a row: 10,000 of them are 113 MB


def peak_of_a_run(folder: Path, count: int) -> None:
    """Write `count` rows, read them all, train on some; prints the process's peak resident memory in bytes."""
    from diffusers import DDPMScheduler
    from row_cache import write_cache
    from tiny_pipeline import tiny_unet

    from gendistill.data.batches import LatentData, as_rows
    from gendistill.diffusion.denoiser import Denoiser
    from gendistill.diffusion.guidance import Guidance, GuidanceConfig
    from gendistill.diffusion.trained_networks import full_networks
    from gendistill.methods.consistency import ConsistencyConfig, ConsistencyDistillation
    from gendistill.runtime.random import PerSampleRandom
    from gendistill.samplers.conditioning import Conditioning
    from gendistill.samplers.families.stable_diffusion import StableDiffusion
    from gendistill.schedulers import NoiseSchedule
    from gendistill.training.trainer import Trainer
    from gendistill.training.trainer_config import TrainerConfig

    def parts():
        for first in range(0, count, PART):
            moments = torch.arange(first, first + PART).reshape(-1, 1, 1, 1).expand(-1, 8, 8, 8) / count
            yield as_rows(moments, Conditioning(prompt_embeds=torch.full((PART, TOKENS, WIDTH), 0.1)))

    data = LatentData(write_cache(folder / "cache", parts()))
    seen = torch.zeros(count, dtype=torch.bool)
    for step in range(STEPS):
        rows = data.rows_of_step(0, step, BATCH)
        data.batch(rows, PerSampleRandom(0, step, 0, BATCH))
        seen[rows] = True
    assert seen.all()
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler(beta_schedule="scaled_linear"))
    networks = full_networks(Denoiser(tiny_unet(), schedule, "epsilon", StableDiffusion().call))
    nothing = Conditioning(prompt_embeds=torch.zeros(1, TOKENS, WIDTH))
    config = TrainerConfig(batch_size=8, max_steps=TRAINED_STEPS, trackers=[])
    Trainer(
        ConsistencyDistillation(networks, Guidance(nothing, GuidanceConfig()), ConsistencyConfig()),
        data,
        config,
        folder,
        seed=0,
        cpu=True,
    ).train()
    status = Path("/proc/self/status").read_text()
    print(next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), flush=True)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_run_on_ten_thousand_images_takes_the_memory_of_one_on_a_thousand(tmp_path):
    peaks = []
    for count in (1_000, 10_000):
        (tmp_path / str(count)).mkdir()
        process = FreshProcess(partial(peak_of_a_run, tmp_path / str(count), count), tmp_path / f"{count}.txt")
        assert process.wait() == 0, process.text
        peaks.append(int(process.text.split()[-1]))
    print(f"peak resident memory: {peaks[0] / 2**20:.0f} MiB with 1,000 images, {peaks[1] / 2**20:.0f} MiB with 10,000")
    assert peaks[1] - peaks[0] < 50 * 10**6
