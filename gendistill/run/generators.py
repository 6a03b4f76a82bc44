"""Runs of GANs: a generator in, a folder with a smaller generator out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from gendistill.assets import asset_path
from gendistill.data.cached import image_source
from gendistill.data.gan_batches import ImageData, NoData
from gendistill.data.gan_images import prepare_images
from gendistill.data.gan_pairs import generate_pairs, pair_images, paired_size
from gendistill.evaluation.default_extractor import is_embedded
from gendistill.gan.gan_export import export_student
from gendistill.gan.gan_folder import Gan
from gendistill.gan.gan_loading import EXPECTS, describe, open_teacher
from gendistill.gan.generator import prefer_channels_last
from gendistill.losses.terms import FEATURE_LOSSES
from gendistill.methods import RunConfig, Stage, recipe_of
from gendistill.methods.gan_build import GeneratorContext
from gendistill.methods.gan_start import start_student
from gendistill.metrics.features.feature_extractor import load_extractor
from gendistill.run.gan_validation import GeneratorValidator
from gendistill.run.located_paths import located
from gendistill.run.student_provenance import provenance_of
from gendistill.run.validation import reported_extractor
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers.provenance import weights_fingerprint
from gendistill.training.step import TrainingData
from gendistill.training.trainer import TrainingResult, Validate

COMPRESSING = "compressing: networks tried"


class GeneratorRun:
    """A run that distills a GAN; see `run.distill.RunOfKind`."""

    def __init__(self, config: RunConfig, processes: PartialState) -> None:
        self.config, self.processes = config, processes
        self.teacher = open_teacher(config.teacher, config=config.teacher_config, settings=config.generator)
        _report(describe(self.teacher))
        recipe_of(config).check(config, self.teacher)
        generator = self.teacher.generator
        prefer_channels_last(generator.network, lambda: generator(*generator.example(2)))

    @staticmethod
    def require_teacher(config: RunConfig) -> None:
        if (Path(asset_path(config.teacher)) / "model_index.json").is_file():
            raise ValueError(f"teacher {config.teacher}: is a diffusion model; --method {config.method} {EXPECTS}")

    @staticmethod
    def describe(config: RunConfig) -> tuple[str, str, str]:
        """Opens the teacher to describe it, and prunes it to describe the student."""
        teacher = open_teacher(config.teacher, config=config.teacher_config, settings=config.generator)
        data, description = config.data, "none: the teacher's images serve as real images"
        if data.path is not None:
            spec = teacher.generator.spec
            source = image_source(data, config.seed, spec.knows if spec.num_classes else None)
            description = f"{source.describe()}; resized into {data.cache}"
        with advancing_bar(COMPRESSING) as tried:
            start = start_student(teacher, config.compress, NoData(), config.seed, tried=tried)
        return f"{config.teacher}, {describe(teacher)}", f"a student of {start.describe()}, and its discriminator", description

    def prepare(self) -> None:
        config, generator = self.config, self.teacher.generator
        with advancing_bar("reading the images") as progress:
            self.images = prepare_images(config.data, generator.spec, config.seed, progress)
        if isinstance(self.images, ImageData) and self._pairs_images(self.images):
            with advancing_bar("generating images of the teacher (gan.pairs)", len(self.images)) as progress:
                generator.network.to(self.processes.device)
                self.images = pair_images(generator, self.images, config.data.cache, progress)
        self.training_data: TrainingData = self.images
        if config.gan.pairs:
            with advancing_bar("generating images of the teacher (gan.pairs)", config.gan.pairs) as progress:
                generator.network.to(self.processes.device)
                self.training_data = generate_pairs(generator, self.images, config.gan.pairs, config.data.cache, progress)

    def _pairs_images(self, images: ImageData) -> bool:
        """Whether the teacher's images of the input images are cached: where each step needs them and nothing else of it."""
        settings, spec = self.config.gan, self.teacher.generator.spec
        if settings.pairs is not None or spec.kind == "noise":
            return False
        if settings.peer == "teacher" or any(getattr(settings.features, name) != 0 for name in FEATURE_LOSSES):
            return False
        if (size := paired_size(spec, images)) > settings.pairs_gib * 2**30:
            _report(
                f"the teacher generates in every step: its images of {len(images)} images need {size / 2**30:.3g} GiB "
                f"(gan.pairs_gib {settings.pairs_gib:g})"
            )
            return False
        return True

    def stages(self) -> Iterator[Stage]:
        config, teacher, device = self.config, self.teacher, self.processes.device
        with self.processes.local_main_process_first(), advancing_bar(COMPRESSING) as tried:
            self.start = start_student(teacher, config.compress, self.images, config.seed, tried=tried)
        _report(f"student: {self.start.describe()}")
        for layer, reason in self.start.not_pruned.items():
            _report(f"not pruned: {layer} ({reason})")
        yield from recipe_of(config).stages(GeneratorContext(config, teacher, self.start, self.images, device))

    def data(self, stage: Stage) -> TrainingData:
        return self.training_data

    def validator(self, stage: Stage, samples: Path) -> Validate:
        config, device = self.config, self.processes.device
        spec, num = self.teacher.generator.spec, config.trainer.num_validation
        embedded = is_embedded(spec.output_shape[1:], spec.classes, config.data.path)
        extractor = load_extractor(reported_extractor(config.validation_extractor, embedded=embedded), str(device))
        method: Any = stage.method  # every recipe of generators has a `GanCodistillation`
        return GeneratorValidator(method, self.images, extractor, samples, num=num, seed=config.seed, device=device)

    def export(self, stage: Stage, training: TrainingResult, folder: Path) -> tuple[Gan, str]:
        """Write the EMA of the best validation, with the discriminator of the last step."""
        config, start, average = located(self.config), self.start, stage.method.networks.average
        assert training.best is not None  # the validator has evaluated at least step 0
        student_info: dict[str, Any] = {
            "method": config.method,
            "teacher": config.teacher,
            "teacher_config": config.teacher_config,
            "generator": config.generator.model_dump(mode="json"),
            "compress": config.compress.factor,
            "macs": start.macs,
            "parameters": start.parameters,
            "teacher_macs": start.teacher_macs,
            "teacher_parameters": start.teacher_parameters,
            "figures": _numbers(training.best.figures),
            "validation_network": training.best.figures["network"],
            "steps": training.steps,
        }
        average.network.to(memory_format=torch.contiguous_format)  # the memory format of saved files
        student = Gan(average, start.source, student=student_info)
        if self.processes.is_main_process:
            export_student(folder, student, self._provenance(stage, training))
        return student, f"{config.method} student; {start.describe()}"

    def _provenance(self, stage: Stage, training: TrainingResult) -> dict[str, Any]:
        config, start, images = self.config, self.start, self.images
        data = (
            images.cache.provenance.get("described", "unknown")
            if isinstance(images, ImageData)
            else "none: the teacher's images"
        )
        return {
            "teacher": config.teacher,
            "teacher network": f"sha256 {weights_fingerprint(self.teacher.generator.network)}",
            "multiply-accumulates": f"{start.macs:,} per image (teacher: {start.teacher_macs:,})",
            "parameters": f"{start.parameters:,} (teacher: {start.teacher_parameters:,})",
            "data": data,
            **provenance_of(config, stage, training),
            **({name: f"{value:.4g}" for name, value in _numbers(training.best.figures).items()} if training.best else {}),
        }


def _numbers(figures: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if isinstance(value, float)}


def _report(sentence: str) -> None:
    if PartialState().is_main_process:
        print(sentence, file=sys.stderr)
