"""What is predicted of memory beside what a process takes: sampling, and a step of LoRA training, at real size on this CPU.

    python benchmarks/memory_study.py --models sd1,sd2-v,sdxl --sizes 256,512

Each measurement is a process of its own, whose resident memory at its peak (the kernel's high-water mark) is told beside what
was predicted from shapes and what the process held before the model came. The weights are random.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

JOBS = ("sampling", "lora")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="sd1,sd2-v,sdxl")
    parser.add_argument("--sizes", default="256,512")
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--one", nargs=3, metavar=("JOB", "MODEL", "SIZE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        job, model, size = given.one
        print(json.dumps(measured(job, model, int(size))))
        return
    table = Table("job", "model", "pixels", "predicted, GiB", "measured, GiB", "predicted / measured")
    for job in given.jobs.split(","):
        for model in given.models.split(","):
            for size in given.sizes.split(","):
                command = [sys.executable, __file__, "--one", job, model, size]
                done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
                if done.returncode:
                    table.add_row(job, model, size, "", done.stderr.strip().splitlines()[-1], "")
                    continue
                found = json.loads(done.stdout.splitlines()[-1])
                sizes = found["predicted"], found["measured"]
                ratio = sizes[0] / sizes[1]
                table.add_row(job, model, size, *(f"{of / 2**30:.2f}" for of in sizes), f"{ratio:.3f}")
                print(job, model, size, found, file=sys.stderr, flush=True)
    Console(width=120).print(table)


def measured(job: str, model: str, size: int) -> dict[str, float]:
    """Bytes: before the model came, predicted and measured at the peak with these."""
    import torch
    from random_models import random_pipeline

    from gendistill.cli.shared import quieten_libraries
    from gendistill.metrics.cost.measured_memory import _status_bytes

    quieten_libraries()
    predict, work = {"sampling": (predicted_sampling, sample), "lora": (predicted_step, step)}[job]
    needed = predict(model, size)
    torch.nn.functional.conv2d(torch.ones(1, 8, 8, 8), torch.ones(8, 8, 3, 3))  # libraries that are loaded when first used
    before = _status_bytes("VmRSS")
    work(random_pipeline(model, latents=size // 8), size)
    return {"before": before, "predicted": before + needed, "measured": _status_bytes("VmHWM")}


def predicted_sampling(model: str, size: int) -> int:
    import torch

    from gendistill.samplers.offload.memory_model import PLACEMENTS, MetaNetworks

    needs = MetaNetworks.from_configs(model).needs((size, size), 1, guided=False, dtype=torch.float32, cpu=True)
    return needs.peak(PLACEMENTS[0])


def predicted_step(model: str, size: int) -> int:
    from gendistill.run.training_plan import step_needs

    return step_needs(settings(model, size), cpu=True).peak


def settings(model: str, size: int):
    from gendistill.run.config import load_config

    return load_config(
        None,
        {
            "teacher": model,
            "lora.enabled": True,
            "data.path": "images",
            "data.resolution": size,
            "trainer.batch_size": 1,
            "trainer.gradient_checkpointing": True,
        },
    )


def sample(pipeline, size: int) -> None:
    from gendistill.samplers import FewStepSampler

    sampler = FewStepSampler(pipeline)
    list(sampler.images(["a cat"], [0], num_inference_steps=1, guidance_scale=1.0, size=(size, size)))


def step(pipeline, size: int) -> None:
    """An optimizer step of consistency distillation into a LoRA, on one random image."""
    import torch

    from gendistill.data.batches import Batch
    from gendistill.diffusion.teacher import teacher_of
    from gendistill.methods import denoiser_stages
    from gendistill.methods.denoiser_method import DenoiserContext
    from gendistill.runtime.random import PerSampleRandom

    teacher = teacher_of(pipeline, "random", size)
    context = DenoiserContext(settings("sd1", size), teacher.family, teacher.denoiser, teacher.unconditional())
    method = next(denoiser_stages(context)).method
    pipeline.unet.enable_gradient_checkpointing()
    pipeline.unet.train()
    optimizer = torch.optim.AdamW(method.trained_parameters()["student"].values())
    batch = Batch(torch.randn(1, 4, size // 8, size // 8), teacher.encode_prompts(["a cat"]))
    for update in method.updates(batch, 0, PerSampleRandom(0, 0, 0, 1)):
        update.loss.backward()
        optimizer.step()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
