"""A quantised network beside the same one in float32, on this CPU: a call, and a whole image of 4 steps.

    python benchmarks/bench_quantization.py  # the architecture of Stable Diffusion 1.5 with random weights, 256 pixels; tiny-sd
    python benchmarks/bench_quantization.py --quantization nf4-weights

In one process, in turn. Below, where the time of a quantised call goes, by operator.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from random_models import random_pipeline
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from gendistill.cli.shared import quieten_libraries
from gendistill.samplers import FewStepSampler
from gendistill.samplers.families import family_of
from gendistill.samplers.loading import open_pipeline
from gendistill.samplers.quantization.quantize import QUANTIZATIONS, quantize

STEPS, PROMPT = 4, "a red apple on a table"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="sd1,assets/tiny-sd", help="separated by commas")
    parser.add_argument("--quantization", default="int8", choices=QUANTIZATIONS)
    parser.add_argument("--size", type=int, default=256, help="of the architectures with random weights")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    quieten_libraries()
    table = Table(
        "model",
        "what",
        "float32, s",
        f"{given.quantization}, s",
        "times as fast",
        title=f"{torch.get_num_threads()} threads of a CPU",
    )
    for model in given.models.split(","):
        known = "/" not in model
        plain = random_pipeline(model) if known else open_pipeline(model)
        plain.set_progress_bar_config(disable=True)
        coarse = type(plain)(**{**plain.components, "unet": copy.deepcopy(plain.unet)}, requires_safety_checker=False)
        quantize(coarse, given.quantization, "cpu")
        size = (given.size, given.size) if known else None
        for what, (ours, theirs) in {"a call": calls(plain, coarse, size), "4 steps": images(plain, coarse, size)}.items():
            seconds = in_turn(ours, theirs, given.rounds if known else 10 * given.rounds)
            ratio = statistics.median(one / other for one, other in seconds)
            table.add_row(model, what, *(f"{statistics.median(of):.3f}" for of in zip(*seconds, strict=True)), f"{ratio:.2f}")
        Console(width=120).print(operators(calls(plain, coarse, size)[1]), highlight=False)
    Console(width=120).print(table)


def calls(plain: Any, coarse: Any, size: tuple[int, int] | None) -> tuple[Callable[[], Any], Callable[[], Any]]:
    edges = (edge // plain.vae_scale_factor for edge in size or FewStepSampler(plain).size)
    inputs = family_of(plain).example_inputs(plain.unet.config, 1, tuple(edges), torch.float32)
    example = {name: torch.rand(of.shape) for name, of in inputs.items()}
    return lambda: plain.unet(**example), lambda: coarse.unet(**example)


def images(plain: Any, coarse: Any, size: tuple[int, int] | None) -> tuple[Callable[[], Any], Callable[[], Any]]:
    def generate(sampler: FewStepSampler) -> None:
        list(sampler.images([PROMPT], [0], num_inference_steps=STEPS, guidance_scale=1.0, size=size))

    ours, theirs = FewStepSampler(plain), FewStepSampler(coarse)
    return lambda: generate(ours), lambda: generate(theirs)


@torch.no_grad()
def in_turn(one: Callable[[], Any], other: Callable[[], Any], rounds: int) -> list[tuple[float, float]]:
    """Seconds of both, round by round; the first warms up."""
    found = [(seconds(one), seconds(other)) for _ in range(rounds + 1)]
    return found[1:]


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@torch.no_grad()
def operators(call: Callable[[], Any]) -> str:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    whole = sum(of.self_cpu_time_total for of in profiled.key_averages())
    most = sorted(profiled.key_averages(), key=lambda of: -of.self_cpu_time_total)[:8]
    return ", ".join(f"{of.key} {of.self_cpu_time_total / whole:.0%}" for of in most)


if __name__ == "__main__":
    main()
