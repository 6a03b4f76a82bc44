"""A GAN teacher in, a student folder out."""

from __future__ import annotations

import copy
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

import gendistill
from gendistill.config import DistillConfig, save_config
from gendistill.data.encode import weights_fingerprint
from gendistill.gan.architectures import discriminator_for
from gendistill.gan.batches import NoData, PictureData
from gendistill.gan.discriminator import Discriminator, adapt
from gendistill.gan.export import export_student
from gendistill.gan.folder import Gan
from gendistill.gan.generator import Generator
from gendistill.gan.hints import Hint, Regressors, match
from gendistill.gan.hints import describe as describe_hints
from gendistill.gan.networks import Pupil, gan_networks
from gendistill.gan.opening import describe, open_teacher
from gendistill.gan.pairs import paint_pairs
from gendistill.gan.perception import Perception, open_perception
from gendistill.gan.picture_cache import prepare_pictures
from gendistill.gan.student import Start, start_student
from gendistill.generator_validation import GeneratorValidator
from gendistill.machine import make_folder
from gendistill.methods.gan_codistillation import GanCodistillation, Player
from gendistill.methods.gan_imitation import FEATURE_LOSSES, RELATION_LOSSES
from gendistill.metrics.features import load_extractor
from gendistill.progress import advancing_bar
from gendistill.training.trainer import Trainer, TrainingData, TrainingResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeneratorResult:
    """A student GAN, and how it came to be."""

    student_folder: Path
    student: Gan
    start: Start
    training: TrainingResult
    method: GanCodistillation
    is_main_process: bool = True

    def describe(self) -> str:
        return f"{self.student_folder}: gan student; {self.start.describe()}"


def distill_generator(config: DistillConfig, run: Path, processes: PartialState, resume: bool) -> GeneratorResult:
    """Distill the GAN `config.teacher` and write `run`/student; see `gendistill.distill.distill`."""
    if config.lora.enabled:
        raise ValueError("lora.enabled: a GAN student has weights of its own; takes false")
    if config.dtype != "float32":
        raise ValueError(f"dtype {config.dtype}: a GAN teacher stays in float32; trainer.mixed_precision=bf16 is for training")
    device = processes.device
    teacher = open_teacher(config.teacher, config=config.teacher_config, settings=config.generator)
    _say(describe(teacher))
    with advancing_bar("reading the pictures") as progress:
        data = prepare_pictures(config.data, teacher.generator.spec, config.seed, progress)
    learned_on: TrainingData = data
    if config.gan.pairs:
        with advancing_bar("painting pairs") as progress:
            teacher.generator.network.to(device)
            learned_on = paint_pairs(teacher.generator, data, config.gan.pairs, config.data.cache, progress)
    torch.manual_seed(config.seed)  # fresh networks start at random
    with processes.local_main_process_first():
        start = start_student(teacher, config.compress, data, config.seed)
    _say(f"student: {start.describe()}")
    for layer, reason in start.kept_whole.items():
        _say(f"kept whole: {layer} ({reason})")
    method = build_method(config, teacher, start, data, device)
    if processes.is_main_process:
        save_config(config, run / "config.yaml")
    extractor = load_extractor(config.validation_extractor or "emoji", str(device))
    validator = GeneratorValidator(
        method,
        data,
        extractor,
        make_folder(run / "samples"),
        num=config.trainer.num_validation,
        seed=config.seed,
        device=device,
    )
    cpu = device.type == "cpu"
    trainer = Trainer(method, learned_on, config.trainer, run, seed=config.seed, validate=validator, cpu=cpu)
    training = trainer.train(resume=resume)
    student = _student(config, teacher, start, method, training)
    if processes.is_main_process:
        export_student(run / "student", student, _lineage(config, teacher, start, data, training))
    return GeneratorResult(run / "student", student, start, training, method, processes.is_main_process)


def build_method(
    config: DistillConfig, teacher: Gan, start: Start, data: PictureData | NoData, device: torch.device | str
) -> GanCodistillation:
    """The method with all its networks on a device.

    Raises:
        ValueError: a loss is asked for that the teacher cannot give.
    """
    settings, spec = config.gan, teacher.generator.spec
    twin = None
    if settings.partner == "student":  # before the teacher goes to its device: pruning works on the CPU
        twin = start_student(teacher, config.compress, data, config.seed + 1, "random").network.to(device)
    for network in (teacher.generator.network, teacher.discriminator, start.network):
        if network is not None:
            network.to(device)
    teacher.generator.network.requires_grad_(False) if teacher.generator.differentiable else None
    hints = _hints(config, teacher, start, device)
    networks = gan_networks(teacher.generator, start.network, hints)
    networks.student.to(device)
    theirs = _of_teacher(teacher, config)
    frozen = None
    if theirs is not None:
        frozen = theirs.with_network(copy.deepcopy(theirs.network).eval().requires_grad_(False))
    adversarial = settings.adversarial != 0
    fresh = discriminator_of(config, teacher, theirs, device) if adversarial else None
    players = [Player("student", networks.student, fresh)]
    opinion = frozen
    if twin is not None:
        of_twin = teacher.generator.with_network(twin.float().train().requires_grad_(True))
        pupil = Pupil(of_twin, [hint.student_path for hint in hints], Regressors(hints)).to(device)  # as wide as the student
        players.append(Player("partner", pupil, discriminator_of(config, teacher, theirs, device) if adversarial else None))
    if settings.partner == "teacher":
        if isinstance(data, NoData) or not adversarial or not teacher.generator.differentiable:
            raise ValueError(
                "gan.partner teacher: goes on learning, which takes data.path, gan.adversarial above 0 and no program"
            )
        teacher.generator.network.train().requires_grad_(True)
        pupil = Pupil(teacher.generator, [hint.teacher_path for hint in hints])
        goes_on = discriminator_of(config, teacher, theirs, device, inherit=True)
        players.append(Player("teacher", pupil, goes_on, distils=False))
        opinion = goes_on
    example = torch.zeros(1, *spec.output_shape, device=device)
    perception = _perception(config, teacher.generator, frozen, example)  # which stays as it is: what learns is no measure
    real = settings.discriminator.real or ("teacher" if isinstance(data, NoData) or spec.kind == "image" else "data")
    if real != "teacher" and isinstance(data, NoData):
        raise ValueError(
            f"gan.discriminator.real {real}: takes data.path; without data the teacher's pictures are the real ones"
        )
    return GanCodistillation(
        networks, hints, players, settings, teacher_discriminator=opinion, perception=perception, real=real
    )


def _hints(config: DistillConfig, teacher: Gan, start: Start, device: torch.device | str) -> list[Hint]:
    """The layers that are matched, told; none where no loss looks at them."""
    settings = config.gan.features
    asked = [name for name in FEATURE_LOSSES if getattr(settings, name) != 0]
    if not asked:
        return []
    if not teacher.generator.differentiable:
        logger.warning("gan.features: a program shows no layers; %s is left out", ", ".join(asked))
        return []
    example = tuple(tensor.to(device) for tensor in teacher.generator.example(2))
    hints = match(teacher.generator.network, start.network, example, settings.layers)
    _say(f"layers that are matched:\n{describe_hints(hints)}")
    return hints


def _of_teacher(teacher: Gan, config: DistillConfig) -> Discriminator | None:
    if teacher.discriminator is None or config.generator.discriminator == "fresh":
        return None
    return adapt(teacher.discriminator, teacher.generator.spec)


def discriminator_of(
    config: DistillConfig,
    teacher: Gan,
    theirs: Discriminator | None,
    device: torch.device | str,
    inherit: bool | None = None,
) -> Discriminator:
    """One that learns: the teacher's as it is where there is one, else a fresh one that fits the pictures.

    Args:
        inherit: whether to take the teacher's; as the config says where None.
    """
    inherit = config.gan.discriminator.inherit if inherit is None else inherit
    if theirs is not None and inherit:
        return theirs.with_network(_learning(copy.deepcopy(theirs.network)))
    fresh: nn.Module = discriminator_for(teacher.generator)
    return adapt(_learning(fresh).to(device), teacher.generator.spec)


def _learning(network: nn.Module) -> nn.Module:
    return network.float().train().requires_grad_(True)


def _perception(
    config: DistillConfig, teacher: Generator, discriminator: Discriminator | None, example: torch.Tensor
) -> Perception | None:
    settings = config.gan
    asked = settings.output.perceptual != 0 or any(getattr(settings.relations, name) != 0 for name in RELATION_LOSSES)
    if not asked:
        return None
    found = open_perception(settings.output.perceptual_network, teacher.spec, discriminator, example)
    if found is None and settings.output.perceptual != 0:
        logger.warning("gan.output.perceptual is left out: the teacher has no discriminator to look through")
    return found


def _student(config: DistillConfig, teacher: Gan, start: Start, method: GanCodistillation, training: TrainingResult) -> Gan:
    """The average that validated best, with the discriminator as it was at the end."""
    assert training.best is not None  # the validator has judged at least the start
    told: dict[str, Any] = {
        "method": "gan",
        "teacher": config.teacher,
        "teacher_config": config.teacher_config,
        "generator": config.generator.model_dump(mode="json"),
        "compress": config.compress.factor,
        "macs": start.macs,
        "parameters": start.parameters,
        "teacher_macs": start.teacher_macs,
        "teacher_parameters": start.teacher_parameters,
        "figures": training.best.figures,
        "steps": training.steps,
    }
    return Gan(method.networks.average, start.source, student=told)


def _lineage(
    config: DistillConfig, teacher: Gan, start: Start, data: PictureData | NoData, training: TrainingResult
) -> dict[str, Any]:
    described = (
        data.cache.provenance.get("described", "unknown") if isinstance(data, PictureData) else "none: the teacher's pictures"
    )
    return {
        "teacher": config.teacher,
        "teacher network": f"sha256 {weights_fingerprint(teacher.generator.network)}",
        "multiply-accumulates": f"{start.macs:,} a picture, the teacher's {start.teacher_macs:,}",
        "parameters": f"{start.parameters:,}, the teacher's {start.teacher_parameters:,}",
        "data": described,
        "steps trained": f"{training.steps} at batch {config.trainer.batch_size}, best at {training.best_step}",
        "minutes": f"{training.seconds / 60:.1f}",
        "seed": config.seed,
        "versions": f"gendistill {gendistill.__version__}, torch {torch.__version__}",
        **({"ended": training.ended} if training.ended else {}),
        **({name: f"{value:.4g}" for name, value in training.best.figures.items()} if training.best else {}),
    }


def _say(sentence: str) -> None:
    if PartialState().is_main_process:
        print(sentence, file=sys.stderr)
