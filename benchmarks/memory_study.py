"""Predicted and measured memory of sampling and of LoRA training steps, for architectures of real size on this CPU.

    python benchmarks/memory_study.py --models sd1,sd2-v,sdxl --sizes 256,512
    python benchmarks/memory_study.py --models sd3-medium --sizes 256 --jobs lora --dtype bfloat16 --steps 2
    python benchmarks/memory_study.py --models sd1 --sizes 256 --jobs lora --method distribution_matching --steps 10

Each measurement is a separate process. Its peak resident memory (the kernel's high-water mark) is compared with the prediction
from tensor shapes plus the memory of the process before loading the model. The weights are random. Models have no T5.
"""

import argparse
import json
import os
import shutil
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
    parser.add_argument("--dtype", default="float32", help="of the weights")
    parser.add_argument("--steps", type=int, default=1, help="of the training")
    parser.add_argument("--method", default="consistency", help="of the training")
    parser.add_argument("--one", nargs=3, metavar=("JOB", "MODEL", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        job, model, size = args.one
        print(json.dumps(measured(job, model, int(size), args)))
        return
    table = Table("job", "model", "pixels", "predicted, GiB", "measured, GiB", "predicted / measured")
    for job in args.jobs.split(","):
        for model in args.models.split(","):
            for size in args.sizes.split(","):
                settings = ["--dtype", args.dtype, "--steps", str(args.steps), "--method", args.method]
                command = [sys.executable, __file__, "--one", job, model, size, *settings]
                done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
                if done.returncode:
                    table.add_row(job, model, size, "", done.stderr.strip().splitlines()[-1], "")
                    continue
                result = json.loads(done.stdout.splitlines()[-1])
                sizes = result["predicted"], result["measured"]
                ratio = sizes[0] / sizes[1]
                table.add_row(job, model, size, *(f"{value / 2**30:.2f}" for value in sizes), f"{ratio:.3f}")
                print(job, model, size, result, file=sys.stderr, flush=True)
    Console(width=120).print(table)


def measured(job: str, model: str, size: int, args: argparse.Namespace) -> dict[str, float]:
    """Bytes: before loading the model, and at the peak as predicted and as measured, both including these."""
    import time
    from tempfile import TemporaryDirectory

    import torch
    from random_models import random_pipeline

    from gendistill.cli.shared import quieten_libraries
    from gendistill.metrics.cost.measured_memory import _status_bytes

    quieten_libraries()
    with TemporaryDirectory() as folder:
        configs, without = configs_without_t5(model, Path(folder))
        settings = settings_of(configs, size, args.dtype, args.method)
        needed = predicted_step(settings) if job == "lora" else predicted_sampling(configs, size, args.dtype)
        torch.nn.functional.conv2d(
            torch.ones(1, 8, 8, 8), torch.ones(8, 8, 3, 3)
        )  # load libraries that are loaded at first use
        before = _status_bytes("VmRSS")
        latents = size // 8 if model.startswith("sd") and "3" not in model else None
        pipeline = random_pipeline(model, latents=latents, dtype=getattr(torch, args.dtype), without=without)
        started = time.perf_counter()
        if job == "lora":
            train(pipeline, settings, args.steps)
        else:
            sample(pipeline, size)
    seconds = time.perf_counter() - started
    return {"before": before, "predicted": before + needed, "measured": _status_bytes("VmHWM"), "seconds": seconds}


def configs_without_t5(model: str, folder: Path) -> tuple[Path, list[str]]:
    """A copy of the configs of a model in a folder, without the T5 of its index, and the names of what it lacks."""
    from gendistill.samplers.single_file import ARCHITECTURES

    shutil.copytree(ARCHITECTURES / model, folder, dirs_exist_ok=True)
    index = json.loads((folder / "model_index.json").read_text())
    without = [name for name, entry in index.items() if isinstance(entry, list) and (entry[1] or "").startswith("T5")]
    (folder / "model_index.json").write_text(json.dumps({**index, **{name: [None, None] for name in without}}))
    return folder, without


def predicted_sampling(configs: Path, size: int, dtype: str) -> int:
    import torch

    from gendistill.samplers.offload.memory_model import PLACEMENTS, MetaNetworks

    networks = MetaNetworks.from_configs(configs)
    needs = networks.needs((size, size), 1, guided=False, dtype=getattr(torch, dtype), cpu=True)
    return needs.peak(PLACEMENTS[0])


def predicted_step(settings) -> int:
    from gendistill.run.training_plan import step_needs

    return step_needs(settings, cpu=True).peak


def settings_of(configs: Path, size: int, dtype: str, method: str):
    from gendistill.run.config import load_config

    return load_config(
        None,
        {
            "teacher": str(configs),
            "method": method,
            "dtype": dtype,
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


def train(pipeline, settings, steps: int) -> None:
    """Optimizer steps of a LoRA, on one random image, after the text encoders are released."""
    import torch

    from gendistill.data.batches import Batch
    from gendistill.diffusion.teacher import teacher_of
    from gendistill.methods import denoiser_stages
    from gendistill.methods.denoiser_method import DenoiserContext
    from gendistill.runtime.random import PerSampleRandom
    from gendistill.samplers.offload.released import ReleasedEncoders
    from gendistill.settings.schedule import Step
    from gendistill.training.preparation import checkpoint_gradients

    teacher = teacher_of(pipeline, "random", settings.data.size)
    conditions, unconditional = teacher.encode_prompts(["a cat"]), teacher.unconditional()
    ReleasedEncoders(pipeline, [["a cat"]])
    context = DenoiserContext(settings, teacher.family, teacher.denoiser, unconditional)
    method = next(denoiser_stages(context)).method
    checkpoint_gradients(method.trained_modules())
    optimizers = {name: torch.optim.AdamW(trained.values()) for name, trained in method.trained_parameters().items()}
    batch = Batch(torch.randn(1, *teacher.codec.latent_shape(teacher.size)), conditions)
    for number in range(steps):
        for update in method.updates(batch, Step(number, number / steps), PerSampleRandom(0, number, 0, 1)):
            update.loss.backward()
            for name in update.optimizers:
                optimizers[name].step()
                optimizers[name].zero_grad()
            print(f"step {number}: {update.optimizers[0]} loss {float(update.loss.detach()):.4f}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
