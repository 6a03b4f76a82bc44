"""What a training step costs beside the network calls that it cannot do without, measured in turns in one process.

    python benchmarks/bench.py

A step is all that the trainer does: rows from the cache, noise, targets, loss, gradients, optimizer, average. The calls are
those of the networks alone on a batch of the same size: the teacher's without gradients, the student's with and its backward.
Each round times both, so that what else the machine does meets both; the ratio is the median's over the rounds.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gendistill.data.batches import LatentData
from gendistill.data.encode import prepare_data
from gendistill.diffusion.teacher import load_teacher
from gendistill.methods import Stage, denoiser_stages
from gendistill.methods.denoiser_method import DenoiserContext
from gendistill.run.config import DistillConfig, load_config
from gendistill.runtime.progress import advancing_bar
from gendistill.runtime.random import PerSampleRandom
from gendistill.training.preparation import prepare
from gendistill.training.trainer import Trainer

CONFIG = Path(__file__).parents[1] / "configs" / "progressive.yaml"
MOST = 1.1  # of a halving step, to its network calls


@dataclass(frozen=True)
class Cost:
    stage: str
    teacher_calls: list[int]  # their batch sizes
    step_seconds: float
    calls_seconds: float

    @property
    def ratio(self) -> float:
        return self.step_seconds / self.calls_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    config = load_config(CONFIG, {"trainer.batch_size": args.batch_size, "trainer.trackers": [], "device": "cpu"})
    config = config.model_copy(
        update={"progressive": config.progressive.model_copy(update={"stages": {}, "prediction_type_steps": 0})}
    )
    costs = list(measure(config, args.rounds))
    if args.json:
        print(json.dumps([{**vars(cost), "ratio": cost.ratio} for cost in costs], indent=1))
    else:
        table = Table("stage", "teacher calls", "step, ms", "its network calls, ms", "ratio")
        for cost in costs:
            seconds = (f"{1000 * of:.0f}" for of in (cost.step_seconds, cost.calls_seconds))
            table.add_row(cost.stage, " + ".join(map(str, cost.teacher_calls)), *seconds, f"{cost.ratio:.3f}")
        Console().print(table)
    if costs[-1].ratio > MOST:
        sys.exit(f"the halving step costs {costs[-1].ratio:.2f} times its network calls; expects at most {MOST}")


def measure(config: DistillConfig, rounds: int) -> Iterator[Cost]:
    """The stage that takes in guidance, then the first halving."""
    teacher = load_teacher(config.teacher)
    with advancing_bar("encoding") as progress:
        data = prepare_data(config.data, teacher, config.seed, progress)
    stages = denoiser_stages(DenoiserContext(config, teacher.family, teacher.denoiser, teacher.unconditional(), opened=teacher))
    for stage, _ in zip(stages, range(2), strict=False):
        with tempfile.TemporaryDirectory() as folder:
            yield measure_stage(stage, data, Path(folder), rounds)


def measure_stage(stage: Stage, data: LatentData, folder: Path, rounds: int) -> Cost:
    trainer = Trainer(stage.method, data, stage.trainer, folder, seed=0, cpu=True)
    stepper = trainer.stepper(prepare(stage.method, stage.trainer, trainer.accelerator))
    sizes: list[int] = []
    teacher = stage.method.networks.teacher.network
    hook = teacher.register_forward_hook(lambda module, inputs, output: sizes.append(len(output.sample)))

    def step() -> None:
        stepper(trainer.state, trainer.limits.learning_rate(trainer.state))
        trainer.state.step += 1
        stage.method.after_step(trainer.state.step)

    step()
    hook.remove()
    calls = network_calls(stage, data, sizes)
    calls()
    times = [(timed(step), timed(calls)) for _ in range(rounds)]
    return Cost(stage.folder, sizes, *(statistics.median(of) for of in zip(*times, strict=True)))


def network_calls(stage: Stage, data: LatentData, sizes: list[int]) -> Callable[[], None]:
    """The calls of a step with inputs that are there already, and the student's backward."""
    networks, count = stage.method.networks, stage.trainer.batch_size
    random = PerSampleRandom(0, 0, 0, count)
    batch = data.batch(data.rows_of_step(0, 0, count), random, "cpu")
    embedded = batch.conditioning.with_guidance(torch.full((count,), 2.0))
    t = torch.full((count,), 499)

    def calls() -> None:
        with torch.no_grad():
            for size in sizes:
                twice = size // count
                x_t, times = batch.latents.repeat(twice, 1, 1, 1), t.repeat(twice)
                conditioning = batch.conditioning if "guidance_distillation" in stage.folder else embedded
                networks.teacher.call(networks.teacher.network, x_t, times, type(embedded).cat([conditioning] * twice))
        output: Tensor = networks.student.call(networks.student.network, batch.latents, t, embedded)
        output.sum().backward()
        for parameter in networks.trained.values():
            parameter.grad = None

    return calls


def timed(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
