"""What a run would do, told without doing it: no folder is made, no weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from accelerate import init_empty_weights

from gendistill.data.encode import NOTHING_TO_LEARN_ON
from gendistill.data.gan_batches import NoData
from gendistill.data.sources.prompts import Prompts
from gendistill.data.sources.source import open_source
from gendistill.diffusion.trained_networks import GUIDANCE_EMBEDDING, lora_config
from gendistill.gan.gan_loading import describe, open_teacher
from gendistill.methods.compression import compressed_config
from gendistill.methods.gan_start import start_student
from gendistill.run.config import DistillConfig, TrainerConfig
from gendistill.run.distill import fitting, require_fitting_teacher
from gendistill.samplers.families import family_called
from gendistill.samplers.loading import configs_of
from gendistill.training.checkpoint import Checkpoints


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
        ValueError: the teacher or the data are not there or do not go together with the settings, or the run folder holds a
            run and `resume` is not asked for.
    """
    require_fitting_teacher(config)
    trainer, run = config.trainer, Path(config.out)
    if config.method == "gan":
        return _of_gan(config, resume)
    teacher, trains, texts = _networks(config)
    students = [f"student-{count}" for count in config.steps] if config.method == "progressive" else ["student"]
    minutes = f" or {trainer.checkpoint_minutes:g} minutes" if trainer.checkpoint_minutes else ""
    return Plan(
        teacher=teacher,
        trains=_tiny_autoencoder(config) if config.method == "decoder" else trains,
        data=f"{_data(config, texts)}{_ways(config)}; encoded into {config.data.cache}",
        steps="; ".join(_stages(config)) + f"; a validation every {trainer.validate_every}",
        checkpoints=f"every {trainer.checkpoint_every} steps{minutes}, the last two and the best are kept",
        writes=f"{run}/config.yaml, {_of_stages(config)}log.jsonl, samples/, checkpoints/, "
        f"{', '.join(f'{name}/' for name in trainer.trackers)} and the student in "
        f"{', '.join(str(run / student) for student in students)}",
        resume=_resume(run, resume),
    )


def _of_gan(config: DistillConfig, resume: bool) -> Plan:
    """Of a GAN: what it is has to be found by opening it, and its student's size by making it."""
    trainer, run = config.trainer, Path(config.out)
    teacher = open_teacher(config.teacher, config=config.teacher_config, settings=config.generator)
    if config.data.path is None:
        data = "none: the teacher's pictures are the real ones"
    else:
        source = open_source(
            config.data.path, config.data.caption, config.seed, image_column=config.data.image_column, split=config.data.split
        )
        data = f"{source.describe()}; brought to size into {config.data.cache}"
    start = start_student(teacher, config.compress, NoData(), config.seed)
    return Plan(
        teacher=f"{config.teacher}, {describe(teacher)}",
        trains=f"a student of {start.describe()}, and its discriminator",
        data=data,
        steps=f"{_length(trainer)}; a validation every {trainer.validate_every}",
        checkpoints=f"every {trainer.checkpoint_every} steps, the last two and the best are kept",
        writes=f"{run}/config.yaml, log.jsonl, samples/, checkpoints/, {', '.join(f'{name}/' for name in trainer.trackers)} "
        f"and the student in {run}/student",
        resume=_resume(run, resume),
    )


def _tiny_autoencoder(config: DistillConfig) -> str:
    width, blocks, start = config.decoder.width, config.decoder.blocks, config.decoder.start
    what = f"a tiny autoencoder of {width} channels, blocks of a resolution: {blocks}" if start is None else f"that of {start}"
    return f"{what}; the teacher's network stays as it is"


def _ways(config: DistillConfig) -> str:
    """What alignment learns from beside the data."""
    count, steps = config.align.trajectories, config.align.trajectory_steps
    return f" and {count} trajectories of {steps} steps that the teacher paints" if config.aligns else ""


def _stages(config: DistillConfig) -> Iterator[str]:
    """What is trained one after another."""
    first = ["compression"] if config.compresses and config.method != "compression" else []
    names: list[str] = []
    if config.method == "progressive":
        names = ["imitation", *map(str, config.halved_to())]
    elif config.method == "latent_alignment" and config.align.generations > 1:
        names = [f"generation-{number}" for number in range(1, config.align.generations + 1)]
    elif first:
        names = [config.method]
    for name in (*first, *names):
        yield f"{name}: {_length(config.trainer_of(name))}"
    if not names:
        yield _length(config.trainer)


def _length(trainer: TrainerConfig) -> str:
    until = f", at most {trainer.max_minutes:g} minutes" if trainer.max_minutes else ""
    samples = trainer.max_steps * trainer.batch_size
    return f"{trainer.max_steps} of batch {trainer.batch_size} ({samples:,} samples){until}"


def _of_stages(config: DistillConfig) -> str:
    return "stages/ with their " if len(list(_stages(config))) > 1 else ""


def _networks(config: DistillConfig) -> tuple[str, str, bool]:
    """The teacher and what of it is trained, in words, and whether its prompts are texts."""
    of = " of a smaller network" if config.compresses else ""
    what = f"a LoRA of rank {config.lora.rank}{of}" if config.lora.enabled else f"all weights{of}"
    folder = configs_of(config.teacher, config=config.teacher_config, revision=config.teacher_revision)
    if folder is None:
        return f"{config.teacher}, on the hub", what, True
    index = json.loads((folder / "model_index.json").read_text())
    family = family_called(index["_class_name"])
    fitting(config, family, index["_class_name"])
    whole, trained = count_parameters(folder / family.network_part, index[family.network_part][1], config)
    return (
        f"{config.teacher}, a {index['_class_name']} of {_millions(whole)} parameters",
        f"{what}, {_millions(trained)} parameters",
        family.texts,
    )


def count_parameters(folder: Path, network_class: str, config: DistillConfig) -> tuple[int, int]:
    """How many numbers a network has, and how many of them or of its adapter are trained.

    Args:
        folder: with the network's config.json.
        network_class: diffusers' name of it.
    """
    kind = getattr(diffusers, network_class)
    embedded = {"time_cond_proj_dim": GUIDANCE_EMBEDDING} if config.guidance.mode == "embedded" else {}
    with init_empty_weights():
        network: Any = kind.from_config(kind.load_config(folder))
        smaller = compressed_config(network.config, config.compress) if config.compresses else network.config
        student: Any = kind.from_config(smaller, **embedded)
        if config.lora.enabled:
            student.requires_grad_(False).add_adapter(lora_config(config.lora.rank, config.lora.alpha))
    trained = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    return network.num_parameters(), trained


def _data(config: DistillConfig, texts: bool) -> str:
    path, prompts = config.data.path, config.data.prompts
    if (path and prompts) or (texts and not path and not prompts):
        raise ValueError(NOTHING_TO_LEARN_ON)
    if path is not None:
        source = open_source(
            path, config.data.caption, config.seed, image_column=config.data.image_column, split=config.data.split
        )
        return source.describe()
    what = Prompts(Path(prompts)).describe() if prompts else "all that it knows"
    return f"{config.data.num_synthetic} pictures that the teacher paints of {what}"


def _resume(run: Path, resume: bool) -> str:
    """Where it would go on: in the last stage that has a checkpoint."""
    folders = [folder for folder in (run, *run.glob("stages/*")) if Checkpoints(folder / "checkpoints").steps()]
    if not folders:
        return "nothing to go on from; starts at step 0"
    if not resume:
        raise ValueError(f"out {run} holds a run already; takes --resume, or another folder")
    last = max(folders, key=lambda folder: (folder / "checkpoints").stat().st_mtime)
    name = Checkpoints(last / "checkpoints").steps()[-1]
    return f"goes on from {name}" + ("" if last == run else f" of stage {last.name}")


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"
