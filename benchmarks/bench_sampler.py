"""What the sampler adds to its networks: the time of whole pipelines beside that of their network calls and decoding.

    python benchmarks/bench_sampler.py  # tiny-sd, and the architecture of Stable Diffusion 1.5 with random weights, 256 pixels

In one process, in turn: ours and the stock pipeline, each with its calls timed apart inside of the very same run.
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
    parser.add_argument("--size", type=int, default=256, help="of the architectures with random weights")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    quieten_libraries()
    table = Table("model", "by", "whole, s", "networks, s", "whole / networks", title=f"{STEPS} steps, one image, CPU")
    for model in given.models.split(","):
        known = "/" not in model
        pipeline = random_pipeline(model) if known else open_pipeline(model)
        pipeline.set_progress_bar_config(disable=True)
        size = given.size if known else None
        for name, rounds in beside(pipeline, size, given.rounds if known else 10 * given.rounds).items():
            whole, networks = (statistics.median(times) for times in zip(*rounds, strict=True))
            ratio = statistics.median(all_ / inside for all_, inside in rounds)
            table.add_row(model, name, f"{whole:.3f}", f"{networks:.3f}", f"{ratio:.3f}")
    Console(width=120).print(table)


def beside(pipeline: Any, size: int | None, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """By name, in each round: seconds of the whole, and of the network's calls and the decoding inside of it."""
    area = None if size is None else (size, size)
    known = FewStepSampler(pipeline)

    def generate(sampler: FewStepSampler, seed: int) -> None:
        list(sampler.images([PROMPT], [seed], num_inference_steps=STEPS, guidance_scale=1.0, size=area))

    def stock(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "generator": generator, "output_type": "pt"}
        with torch.no_grad():
            pipeline(PROMPT, height=size, width=size, **settings)

    arms: dict[str, Callable[[int], None]] = {
        "gendistill": lambda seed: generate(known.cold(), seed),
        "gendistill, a prompt sampled before": lambda seed: generate(known, seed),
        "diffusers": stock,
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for seed in range(rounds + 1):
        for name in random.Random(seed).sample(list(arms), len(arms)):
            with timed(pipeline) as inside:
                started = time.perf_counter()
                arms[name](seed)
                whole = time.perf_counter() - started
            if seed:  # the first warms up
                found[name].append((whole, sum(inside)))
    return found


@contextmanager
def timed(pipeline: Any) -> Iterator[list[float]]:
    """The seconds of each call of the network and of the decoder."""
    seconds: list[float] = []

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            made = call(*args, **kwargs)
            seconds.append(time.perf_counter() - started)
            return made

        return timed_call

    pipeline.unet.forward, pipeline.vae.decode = wrap(pipeline.unet.forward), wrap(pipeline.vae.decode)
    try:
        yield seconds
    finally:
        del pipeline.unet.forward, pipeline.vae.decode


if __name__ == "__main__":
    main()
