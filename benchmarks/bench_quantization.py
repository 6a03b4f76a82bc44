"""Time of a quantized network and of the same network in float32 on this CPU: one call, and an image in 4 steps.

    python benchmarks/bench_quantization.py  # the architecture of Stable Diffusion 1.5 with random weights, 256 pixels; tiny-sd
    python benchmarks/bench_quantization.py --quantization nf4-weights

Both are measured alternately in one process. The output also has the time of a quantized call by operator.
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
    parser.add_argument("--size", type=int, default=256, help="image size of the architectures with random weights")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    quieten_libraries()
    table = Table(
        "model",
        "measurement",
        "float32, s",
        f"{args.quantization}, s",
        "speed-up",
        title=f"{torch.get_num_threads()} threads of a CPU",
    )
    for model in args.models.split(","):
        is_random = "/" not in model
        plain = random_pipeline(model) if is_random else open_pipeline(model)
        plain.set_progress_bar_config(disable=True)
        quantized = type(plain)(**{**plain.components, "unet": copy.deepcopy(plain.unet)}, requires_safety_checker=False)
        quantize(quantized, args.quantization, "cpu")
        size = (args.size, args.size) if is_random else None
        measurements = {"a call": calls(plain, quantized, size), "4 steps": images(plain, quantized, size)}
        for name, (plain_call, quantized_call) in measurements.items():
            times = measure_alternately(plain_call, quantized_call, args.rounds if is_random else 10 * args.rounds)
            ratio = statistics.median(first / second for first, second in times)
            medians = (f"{statistics.median(values):.3f}" for values in zip(*times, strict=True))
            table.add_row(model, name, *medians, f"{ratio:.2f}")
        Console(width=120).print(operators(calls(plain, quantized, size)[1]), highlight=False)
    Console(width=120).print(table)


def calls(plain: Any, quantized: Any, size: tuple[int, int] | None) -> tuple[Callable[[], Any], Callable[[], Any]]:
    edges = (edge // plain.vae_scale_factor for edge in size or FewStepSampler(plain).size)
    inputs = family_of(plain).example_inputs(plain.unet.config, 1, tuple(edges), torch.float32)
    example = {name: torch.rand(value.shape) for name, value in inputs.items()}
    return lambda: plain.unet(**example), lambda: quantized.unet(**example)


def images(plain: Any, quantized: Any, size: tuple[int, int] | None) -> tuple[Callable[[], Any], Callable[[], Any]]:
    def generate(sampler: FewStepSampler) -> None:
        list(sampler.images([PROMPT], [0], num_inference_steps=STEPS, guidance_scale=1.0, size=size))

    plain_sampler, quantized_sampler = FewStepSampler(plain), FewStepSampler(quantized)
    return lambda: generate(plain_sampler), lambda: generate(quantized_sampler)


@torch.no_grad()
def measure_alternately(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> list[tuple[float, float]]:
    """Seconds of both functions in each round, after a warm-up round."""
    times = [(seconds(first), seconds(second)) for _ in range(rounds + 1)]
    return times[1:]


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@torch.no_grad()
def operators(call: Callable[[], Any]) -> str:
    """The operators with the largest fractions of the CPU time of a call."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    total = sum(operator.self_cpu_time_total for operator in profiled.key_averages())
    largest = sorted(profiled.key_averages(), key=lambda operator: -operator.self_cpu_time_total)[:8]
    return ", ".join(f"{operator.key} {operator.self_cpu_time_total / total:.0%}" for operator in largest)


if __name__ == "__main__":
    main()
