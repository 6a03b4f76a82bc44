"""Check gendistill on this machine's GPU in under 10 minutes, and write what was measured as a Markdown table.

    python scripts/gpu_check.py --out gpu.md
    python scripts/gpu_check.py --device cpu --small --sections methods,sampling   # the same code with small models

- methods: every method, full and LoRA, in float32, bf16 and fp16, with gradient accumulation and checkpointing, from tiny-sd
  and tiny-gan. Losses are finite and near those of float32.
- waiting: training steps under `torch.cuda.set_sync_debug_mode("error")`: no operation waits for the GPU.
- training: steps of the architectures of Stable Diffusion 1.5 and XL with random weights: the memory and the prediction of
  `gendistill plan --train`, and the time of a step.
- sampling: the same architectures in every placement and quantization: the memory and the prediction of
  `gendistill plan`, and the time relative to plain diffusers.
- demo: `gendistill demo`.

The exit code is 1 if a check failed; a check that cannot run here, or that the time does not suffice for, is skipped.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from random_models import random_pipeline

from gendistill.assets import asset_path
from gendistill.cli.shared import quieten_libraries
from gendistill.data.batches import Batch, Trajectories
from gendistill.diffusion.teacher import load_teacher, teacher_of
from gendistill.methods import RECIPES, denoiser_stages
from gendistill.methods.denoiser_method import DenoiserContext
from gendistill.methods.method_registry import may_be_lora
from gendistill.run.config import DistillConfig, load_config
from gendistill.run.distill import distill
from gendistill.run.training_plan import step_needs
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers import FewStepSampler
from gendistill.samplers.offload.memory_model import CUDA_CONTEXT, PLACEMENTS, MetaNetworks
from gendistill.samplers.offload.placed import PlacedSampler
from gendistill.samplers.quantization.quantize import QUANTIZATIONS, quantize
from gendistill.settings.schedule import Step
from gendistill.training.preparation import checkpoint_gradients

PROMPTS = ("google emoji of food fruit", "google emoji of animal mammal")
# Relative to float32's first loss, in consistency a small difference of predictions, of which bfloat16 keeps 8 bits.
TOLERANCE = {"no": 0.01, "fp16": 0.05, "bf16": 0.3}
SIZES = {"sd1": 512, "sdxl": 1024}
STEPS = 4  # of sampling
TIME_LIMIT = 600.0  # seconds
DEMO_SECONDS = 200.0  # reserved for the demo


@dataclass(frozen=True)
class Check:
    """One row of the table: what was done, what was measured, and whether it is as expected."""

    section: str
    name: str
    measured: str
    passed: bool | None = True  # None: skipped


@dataclass(frozen=True)
class Machine:
    """The device of the checks, and whether they use small models."""

    device: str
    small: bool
    folder: Path

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def measured(self, work: Callable[[], Any], times: int = 3) -> tuple[float, float]:
        """Median seconds of `work` after one call, and its peak memory in GiB (0 on a CPU)."""
        seconds = []
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(times + 1):
            started = time.perf_counter()
            work()
            if self.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        peak = torch.cuda.max_memory_allocated() + CUDA_CONTEXT if self.is_cuda else 0
        return statistics.median(seconds[1:]), peak / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="Markdown file for the table")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="separated by commas")
    parser.add_argument("--small", action="store_true", help="small models in place of those of real size, and few checks")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("device cuda: this machine has no CUDA GPU; --device cpu --small runs the same code with small models")
    quieten_libraries()
    started, checks = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(args.device, args.small, Path(folder))
        for section in args.sections.split(","):
            for check in attempts(section, machine, started):
                checks.append(check)
                print(f"{verdict(check):8} {check.section}: {check.name}: {check.measured}", flush=True)
    text = report(checks, machine, time.monotonic() - started)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    if any(check.passed is False for check in checks):
        sys.exit(1)


def attempts(section: str, machine: Machine, started: float) -> Iterator[Check]:
    """The checks of a section; an error becomes a failed check, and the time limit ends the section."""
    limit = TIME_LIMIT if section == "demo" else TIME_LIMIT - DEMO_SECONDS
    for name, check in SECTIONS[section](machine):
        if machine.is_cuda and time.monotonic() - started > limit:
            yield Check(section, name, "skipped: the time is up", None)
            continue
        try:
            measured, passed = check()
        except Exception as error:
            measured, passed = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", False
        yield Check(section, name, measured, passed)
        gc.collect()
        if machine.is_cuda:
            torch.cuda.empty_cache()


Checks = Iterator[tuple[str, Callable[[], tuple[str, bool | None]]]]


def methods(machine: Machine) -> Checks:
    """Every value of each pair of options occurs: precision, LoRA, accumulation, checkpointing."""
    rows = [("no", 1, False), ("bf16", 2, False), ("bf16", 1, True), ("fp16", 2, True), ("fp16", 1, False)]
    for method in list(RECIPES)[: 2 if machine.small else None]:
        for lora in (False, True) if may_be_lora(load_config(None, {"method": method})) else (False,):
            reference: list[float] = []
            for precision, parts, checkpointing in rows:
                options = {
                    "lora.enabled": lora,
                    "trainer.mixed_precision": precision,
                    "trainer.gradient_accumulation_steps": parts,
                    "trainer.gradient_checkpointing": checkpointing,
                }
                name = f"{method}, {'LoRA' if lora else 'full'}, {precision}, {parts} part(s)"
                name += ", checkpointing" if checkpointing else ""
                yield name, partial(train, machine, method, options, reference)


def train(machine: Machine, method: str, options: dict[str, Any], reference: list[float]) -> tuple[str, bool]:
    """Train for 2 steps; the first run is the reference of the others."""
    out = machine.folder / "runs" / str(len(list((machine.folder / "runs").glob("*"))))
    config = small_run(machine, method, out, options)
    distill(config)
    lines = [json.loads(line) for log in sorted(out.rglob("log.jsonl")) for line in log.read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    if not reference:
        reference.extend(losses)
    off = abs(losses[0] / reference[0] - 1)
    return f"losses {', '.join(f'{loss:.4g}' for loss in losses[:4])}; {off:.1%} from float32", (
        all(map(math.isfinite, losses)) and off <= TOLERANCE[config.trainer.mixed_precision]
    )


def small_run(machine: Machine, method: str, out: Path, options: dict[str, Any]) -> DistillConfig:
    prompts = machine.folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    settings: dict[str, Any] = {
        "method": method,
        "teacher": str(asset_path("tiny-gan" if method == "gan" else "tiny-sd")),
        "out": str(out),
        "device": machine.device,
        "data.cache": str(machine.folder / "cache"),
        "trainer.max_steps": 2,
        "trainer.batch_size": 4,
        "trainer.num_validation": 4,
        "trainer.warmup_steps": 0,
        "trainer.log_every": 1,
        "trainer.trackers": [],
        **options,
    }
    if method == "gan":
        settings |= {"gan.pairs": 16, "compress.factor": 2}
    else:
        settings |= {"data.prompts": str(prompts), "data.num_synthetic": 16, "data.synthetic_steps": 2}
        settings |= {"steps": [4], "solvers": ["ddim"], "progressive.start_steps": 8, "align.trajectories": 16}
        settings |= {"align.trajectory_steps": 4, "distribution_matching.fake_score.steps": 1}
    if method == "compression":
        settings |= {"compress.factor": 2}
    return load_config(None, settings)


def waiting(machine: Machine) -> Checks:
    """Forward and backward passes of the methods for denoisers in which an operation that waits for the GPU is an error."""
    for method in ("consistency", "progressive", "latent_alignment", "distribution_matching", "adversarial", "compression"):
        yield method, partial(step_without_waiting, machine, method)


def step_without_waiting(machine: Machine, method: str) -> tuple[str, bool | None]:
    if not machine.is_cuda:
        return "skipped: a CPU computes nothing asynchronously", None
    config = small_run(machine, method, machine.folder / "waiting", {"trainer.mixed_precision": "bf16"})
    teacher = load_teacher(config.teacher, device=machine.device)
    context = DenoiserContext(config, teacher.family, teacher.denoiser, teacher.unconditional(), opened=teacher)
    trained = next(denoiser_stages(context)).method
    conditioning = teacher.encode_prompts(list(PROMPTS) * 2)
    for number in range(2):
        latents = torch.randn(4, *teacher.codec.latent_shape(teacher.size), device=machine.device)
        batch = Batch(latents, conditioning, trajectories_like(latents, conditioning))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if number else "default")  # the first step fills caches
        try:
            with torch.autocast("cuda", torch.bfloat16):
                for update in trained.updates(batch, Step(number, 0.0), PerSampleRandom(0, number, 0, 4)):
                    update.loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return "no operation of the second step waits for the GPU", True


def trajectories_like(latents: torch.Tensor, conditioning: Any) -> Trajectories:
    points = torch.randn_like(latents)[:, None].expand(-1, 5, *latents.shape[1:])
    return Trajectories(points, torch.tensor([999, 749, 499, 249, -1], device=latents.device), conditioning)


def training(machine: Machine) -> Checks:
    """Consistency steps of batch size 1 with gradient checkpointing in bf16."""
    for architecture, size in SIZES.items():
        for lora in (True, False):
            if machine.small or (architecture == "sdxl" and not lora):
                continue
            name = f"{architecture} {size} px, {'LoRA' if lora else 'full'}, bf16, batch 1, checkpointing"
            yield name, partial(real_step, machine, architecture, size, lora)


def real_step(machine: Machine, architecture: str, size: int, lora: bool) -> tuple[str, bool]:
    settings = {
        "teacher": architecture,
        "lora.enabled": lora,
        "dtype": "bfloat16" if lora else "float32",
        "data.path": "images",
        "data.resolution": size,
        "trainer.batch_size": 1,
        "trainer.gradient_checkpointing": True,
        "trainer.mixed_precision": "bf16",
    }
    config = load_config(None, settings)
    predicted = (step_needs(config).peak + CUDA_CONTEXT) / 2**30
    pipeline = random_pipeline(architecture, latents=size // 8, dtype=getattr(torch, config.dtype)).to(machine.device)
    teacher = teacher_of(pipeline, "random", size)
    context = DenoiserContext(config, teacher.family, teacher.denoiser, teacher.unconditional())
    method = next(denoiser_stages(context)).method
    checkpoint_gradients(method.trained_modules())
    optimizer = torch.optim.AdamW(method.trained_parameters()["student"].values())
    latents = torch.randn(1, 4, size // 8, size // 8, device=machine.device)
    batch = Batch(latents, teacher.encode_prompts(["a cat"]))

    def step() -> None:
        with torch.autocast(machine.device.split(":")[0], torch.bfloat16):
            losses = [update.loss for update in method.updates(batch, Step(0, 0.0), PerSampleRandom(0, 0, 0, 1))]
        for loss in losses:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds, peak = machine.measured(step)
    return f"{seconds:.2f} s a step; {peak:.2f} GiB measured, {predicted:.2f} GiB predicted", peak <= predicted * 1.1


def sampling(machine: Machine) -> Checks:
    """4 steps for one image, in every placement and quantization, and in plain diffusers."""
    for architecture, size in [("tiny-sd", 32)] if machine.small else SIZES.items():
        pipeline: list[Any] = []
        reference: list[float] = []
        yield (
            f"{architecture} {size} px, plain diffusers",
            partial(plain_diffusers, machine, architecture, size, pipeline, reference),
        )
        for placement in PLACEMENTS:
            yield (
                f"{architecture} {size} px, {placement.name}",
                partial(placed, machine, size, pipeline, placement, reference),
            )
        for kind in QUANTIZATIONS[1:]:
            yield (
                f"{architecture} {size} px, {kind}",
                partial(quantized, machine, architecture, size, kind, reference),
            )


def made_pipeline(machine: Machine, architecture: str, size: int) -> Any:
    dtype = torch.float16 if machine.is_cuda else torch.float32
    if machine.small:
        return FewStepSampler.from_pretrained(asset_path(architecture), dtype=dtype).pipeline
    return random_pipeline(architecture, latents=size // 8, dtype=dtype)


def plain_diffusers(
    machine: Machine, architecture: str, size: int, made: list[Any], reference: list[float]
) -> tuple[str, bool]:
    pipeline = made_pipeline(machine, architecture, size)
    made.append(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(machine.device)
    settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "height": size, "width": size, "output_type": "pt"}
    seconds, peak = machine.measured(lambda: pipeline("a cat", **settings))
    reference.append(seconds)
    pipeline.to("cpu")
    return f"{seconds:.2f} s, {peak:.2f} GiB", True


def placed(machine: Machine, size: int, made: list[Any], placement: Any, reference: list[float]) -> tuple[str, bool]:
    pipeline = copy.deepcopy(made[0])
    networks = MetaNetworks.like(pipeline)
    needs = networks.needs((size, size), 1, guided=False, dtype=pipeline.dtype, cpu=not machine.is_cuda)
    sampler = PlacedSampler(pipeline, device=machine.device, memory=needs.peak(placement) * 1.0001)
    seconds, peak = machine.measured(lambda: run_sampler(sampler, size))
    predicted = (needs.peak(placement) + CUDA_CONTEXT) / 2**30
    chosen = sampler.placement.name if sampler.placement else "none"
    measured = f"{seconds:.2f} s, {seconds / reference[0]:.2f} of diffusers' time; "
    return measured + f"{peak:.2f} GiB measured, {predicted:.2f} GiB predicted; placement {chosen}", peak <= predicted * 1.1


def quantized(machine: Machine, architecture: str, size: int, kind: str, reference: list[float]) -> tuple[str, bool | None]:
    if kind == "int8" and machine.is_cuda and find_spec("torchao") is None:
        return "skipped: torchao is not installed", None
    pipeline = made_pipeline(machine, architecture, size)
    quantize(pipeline, kind, machine.device)
    sampler = FewStepSampler(pipeline.to(machine.device))
    seconds, peak = machine.measured(lambda: run_sampler(sampler, size))
    return f"{seconds:.2f} s, {seconds / reference[0]:.2f} of diffusers' time; {peak:.2f} GiB", True


def run_sampler(sampler: FewStepSampler, size: int) -> None:
    list(sampler.cold().images(["a cat"], [0], num_inference_steps=STEPS, guidance_scale=1.0, size=(size, size)))


def demo(machine: Machine) -> Checks:
    yield "gendistill demo", partial(run_demo, machine)


def run_demo(machine: Machine) -> tuple[str, bool | None]:
    out = machine.folder / "demo"
    command = [sys.executable, "-m", "gendistill.cli", "demo", "--out", str(out), "--set", f"device={machine.device}"]
    command += ["--set", f"trainer.max_minutes={0.1 if machine.small else 1.5}"]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no output"])[-1], False
    steps = json.loads((out / "log.jsonl").read_text().splitlines()[-1])["step"]
    return f"{steps} steps, {time.monotonic() - started:.0f} s with its evaluation", (out / "images.png").is_file()


SECTIONS: dict[str, Callable[[Machine], Checks]] = {
    "methods": methods,
    "waiting": waiting,
    "training": training,
    "sampling": sampling,
    "demo": demo,
}


def verdict(check: Check) -> str:
    return {True: "ok", False: "FAILED", None: "skipped"}[check.passed]


def report(checks: list[Check], machine: Machine, seconds: float) -> str:
    """The table, with the machine and the versions that it holds for."""
    name = torch.cuda.get_device_name() if machine.is_cuda else platform.processor() or platform.machine()
    lines = [
        f"`python scripts/gpu_check.py` on {name}, torch {torch.__version__}, in {seconds / 60:.1f} minutes:",
        "",
        "| section | check | measured | |",
        "|---|---|---|---|",
    ]
    lines += [f"| {check.section} | {check.name} | {check.measured} | {verdict(check)} |" for check in checks]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
