"""What a run would do, told without doing it: no folder is made, no weights are loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from gendistill.config import DistillConfig
from gendistill.data.prompts import Prompts
from gendistill.data.sources import open_source
from gendistill.diffusion.networks import LORA_TARGETS
from gendistill.training.checkpoint import Checkpoints

Shapes = dict[str, list[int]]


@dataclass(frozen=True)
class Plan:
    """One line each."""

    teacher: str
    trains: str
    data: str
    steps: str
    checkpoints: str
    writes: str
    resume: str

    def lines(self) -> Iterator[str]:
        for name, text in vars(self).items():
            yield f"{name + ':':<13}{text}"


def dry_run(config: DistillConfig, *, resume: bool = False) -> Plan:
    """What `distill(config, resume=resume)` would do.

    Raises:
        ValueError: the teacher or the data are not there, or the run folder holds a run and `resume` is not asked for.
    """
    shapes = network_shapes(config.teacher)
    trainer, run = config.trainer, Path(config.out)
    until = f", at most {trainer.max_minutes:g} minutes" if trainer.max_minutes else ""
    minutes = f" or {trainer.checkpoint_minutes:g} minutes" if trainer.checkpoint_minutes else ""
    return Plan(
        teacher=f"{config.teacher}, {_millions(_count(shapes))} parameters" if shapes else f"{config.teacher}, on the hub",
        trains=_trains(config, shapes),
        data=f"{_data(config)}; encoded into {config.data.cache}",
        steps=f"{trainer.max_steps} of batch {trainer.batch_size} ({trainer.max_steps * trainer.batch_size:,} samples){until}; "
        f"a validation every {trainer.validate_every}",
        checkpoints=f"every {trainer.checkpoint_every} steps{minutes}, the last two and the best are kept",
        writes=f"{run}/config.yaml, log.jsonl, samples/, checkpoints/, {', '.join(f'{name}/' for name in trainer.trackers)} "
        f"and the student in {run / 'student'}",
        resume=_resume(run, resume),
    )


def network_shapes(teacher: str) -> Shapes | None:
    """Shapes of the network's weights by name, from the headers of its files; None where the teacher is not on this disk.

    Raises:
        ValueError: a folder is meant that is not there, or that is no pipeline.
    """
    folder = Path(teacher)
    if not folder.exists() and teacher.count("/") == 1 and not teacher.startswith((".", "/", "~")):
        return None
    try:
        parts = json.loads((folder / "model_index.json").read_text())
        network = next(name for name in ("unet", "transformer") if name in parts)
        files = sorted((folder / network).glob("*.safetensors"))
        opened = [safe_open(file, framework="pt") for file in files]
    except Exception as error:
        raise ValueError(f"model {teacher} cannot be read ({error}); takes a diffusers pipeline folder or a hub id") from error
    return {name: file.get_slice(name).get_shape() for file in opened for name in file.keys()}  # noqa: SIM118


def lora_shapes(shapes: Shapes, rank: int) -> Shapes:
    """The adapter that `lora_networks` would put on a network: two matrices for each layer that it targets."""
    adapters = {}
    for name, shape in shapes.items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and any(layer == target or layer.endswith(f".{target}") for target in LORA_TARGETS):
            adapters[f"{layer}.lora_A.weight"] = [rank, *shape[1:]]
            adapters[f"{layer}.lora_B.weight"] = [shape[0], rank]
    return adapters


def _trains(config: DistillConfig, shapes: Shapes | None) -> str:
    what = f"a LoRA of rank {config.lora.rank}" if config.lora.enabled else "all weights"
    if shapes is None:
        return what
    return f"{what}, {_millions(_count(lora_shapes(shapes, config.lora.rank) if config.lora.enabled else shapes))} parameters"


def _data(config: DistillConfig) -> str:
    path, prompts = config.data.path, config.data.prompts
    if (path is None) == (prompts is None):
        raise ValueError(
            "data.path and data.prompts: takes one of them, pictures to learn on or prompts for the teacher to paint"
        )
    if prompts is not None:
        return f"{config.data.num_synthetic} pictures that the teacher paints of {Prompts(Path(prompts)).describe()}"
    return open_source(path or "", config.data.caption, config.seed).describe()


def _resume(run: Path, resume: bool) -> str:
    steps = Checkpoints(run / "checkpoints").steps()
    if not steps:
        return "nothing to go on from; starts at step 0"
    if not resume:
        raise ValueError(f"out {run} holds a run already; takes --resume, or another folder")
    return f"goes on from {steps[-1]}"


def _count(shapes: Shapes | None) -> int:
    return sum(math.prod(shape) for shape in (shapes or {}).values())


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"
