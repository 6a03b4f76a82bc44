"""Overhead of the sampler: the time of sampling compared with the time of its network calls and decoding.

    python benchmarks/bench_sampler.py  # tiny-sd, and the architecture of Stable Diffusion 1.5 with random weights, 256 pixels

gendistill and diffusers' pipeline are measured alternately in one process; network calls are timed inside the same runs.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from random_models import random_pipeline
from rich.console import Console
from rich.table import Table

from gendistill.cli.shared import quieten_libraries
from gendistill.samplers import FewStepSampler
from gendistill.samplers.loading import open_pipeline

STEPS, PROMPT = 4, "a red apple on a table"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="assets/tiny-sd,sd1", help="separated by commas")
    parser.add_argument("--size", type=int, default=256, help="image size of the architectures with random weights")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    quieten_libraries()
    table = Table("model", "sampler", "total, s", "networks, s", "total / networks", title=f"{STEPS} steps, one image, CPU")
    for model in args.models.split(","):
        is_random = "/" not in model
        pipeline = random_pipeline(model) if is_random else open_pipeline(model)
        pipeline.set_progress_bar_config(disable=True)
        size = args.size if is_random else None
        for name, rounds in measure(pipeline, size, args.rounds if is_random else 10 * args.rounds).items():
            total, networks = (statistics.median(times) for times in zip(*rounds, strict=True))
            ratio = statistics.median(sampling / calls for sampling, calls in rounds)
            table.add_row(model, name, f"{total:.3f}", f"{networks:.3f}", f"{ratio:.3f}")
    Console(width=120).print(table)


def measure(pipeline: Any, size: int | None, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """By sampler and round: seconds of the sampling, and of the network calls and the decoding in it."""
    area = None if size is None else (size, size)
    few_step_sampler = FewStepSampler(pipeline)

    def generate(sampler: FewStepSampler, seed: int) -> None:
        list(sampler.images([PROMPT], [seed], num_inference_steps=STEPS, guidance_scale=1.0, size=area))

    def stock(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "generator": generator, "output_type": "pt"}
        with torch.no_grad():
            pipeline(PROMPT, height=size, width=size, **settings)

    arms: dict[str, Callable[[int], None]] = {
        "gendistill": lambda seed: generate(few_step_sampler.cold(), seed),
        "gendistill, a prompt sampled before": lambda seed: generate(few_step_sampler, seed),
        "diffusers": stock,
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for seed in range(rounds + 1):
        for name in random.Random(seed).sample(list(arms), len(arms)):
            with timed(pipeline) as calls:
                started = time.perf_counter()
                arms[name](seed)
                total = time.perf_counter() - started
            if seed:  # the first round is a warm-up
                times[name].append((total, sum(calls)))
    return times


@contextmanager
def timed(pipeline: Any) -> Iterator[list[float]]:
    """Yields the list of seconds of each call of the network and of the decoder."""
    seconds: list[float] = []

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            output = call(*args, **kwargs)
            seconds.append(time.perf_counter() - started)
            return output

        return timed_call

    pipeline.unet.forward, pipeline.vae.decode = wrap(pipeline.unet.forward), wrap(pipeline.vae.decode)
    try:
        yield seconds
    finally:
        del pipeline.unet.forward, pipeline.vae.decode


if __name__ == "__main__":
    main()
