"""Validation of denoisers: the images of every step count and solver select the checkpoint and solver of the student."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from PIL import Image
from torch import Tensor

from gendistill.data.batches import LatentData
from gendistill.data.encode import training_prompts, training_source, training_texts
from gendistill.diffusion.teacher import Teacher
from gendistill.evaluation.default_extractor import chosen_extractor, is_embedded, prompts_of
from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.evaluation.evaluator import Evaluator, build_evaluator, teacher_evaluator
from gendistill.evaluation.extraction import Advance
from gendistill.evaluation.image_cache import BATCH_SIZE
from gendistill.export.student_folder import student_pipeline
from gendistill.methods import RunConfig, Stage
from gendistill.run.watch import DriftWatch, watched_prompts
from gendistill.runtime.files import written_alone
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import FewStepSampler, image_grid, images_at_once, to_uint8
from gendistill.samplers.prompt_cache import PromptCache
from gendistill.schedulers import edm_scheduler, flow_scheduler, nearest_divisors, solver_eta, student_scheduler
from gendistill.training.log import RunLog
from gendistill.training.processes import gathered, items_of_process
from gendistill.training.state import Validation

GRID_IMAGES = 32
STEPS_OF_TEACHER = 20  # of the images that a student is compared with


class Validator:
    """Validates the EMA of a stage at all step counts with all its solvers, and saves image grids at fixed seeds.

    All solvers sample the same prompts from the same noise.

    Args:
        evaluator: with at least as many prompts as the largest validation has.
        encoded: the conditions of `validation_prompts`, as the pipeline has no text encoders during training.
    """

    def __init__(
        self, config: RunConfig, teacher: Teacher, stage: Stage, evaluator: Evaluator, samples: Path, encoded: PromptCache
    ) -> None:
        self.config, self.teacher, self.stage, self.evaluator, self.samples = config, teacher, stage, evaluator, samples
        self.encoded = encoded
        samples.mkdir(parents=True, exist_ok=True)
        watches = config.watch.prompts and not stage.method.monotone  # a regression does not drift
        self.watch = DriftWatch(config.watch, evaluator, samples / "watch.json", self._of_teacher) if watches else None

    def __call__(self, step: int) -> Validation:
        """The score of a checkpoint: the best solver's distance, averaged over the step counts. All processes sample.

        It is infinite for a student that cannot be exported yet, since it is still changing its prediction type.
        """
        return self._validate(self.config.trainer.num_validation, step)

    def choose_solver(self, best: Validation) -> Validation:
        """A second validation of the best checkpoint, on `num_solver_images` images, whose `solver` becomes the student's.

        Its table of solvers and figures goes to standard error and into the log.

        A stage with one solver, or with no more of these images than `num_validation`, keeps the choice of `best`.
        """
        trainer = self.config.trainer
        if len(self.stage.solvers) == 1:
            return best
        chosen = best
        if trainer.solver_images > trainer.num_validation:
            with advancing_bar("sampling with each solver") as progress:
                chosen = self._validate(trainer.solver_images, progress=progress)
        if PartialState().is_main_process:
            RunLog(self.samples.parent / "log.jsonl").write({"solvers": chosen.figures})
            print(solver_table(chosen), file=sys.stderr)
        return chosen

    def _validate(self, num: int, step: int | None = None, progress: Advance = None) -> Validation:
        evaluator, solvers = self.evaluator.first(num), self.stage.solvers
        distances: dict[str, dict[str, float]] = {}
        drift, reason_to_end = dict[str, float](), None
        with student_pipeline(self.teacher, self.stage.method.networks) as pipeline:
            sampler = FewStepSampler(pipeline, size=self.teacher.size, encoded=self.encoded)
            for solver in solvers:
                pipeline.scheduler = scheduler_of(solver, self.config, self.teacher, self.stage)
                sampler.eta = solver_eta(solver)
                distances[solver] = {}
                for count in self.stage.steps:
                    if count == 1 and solver != solvers[0]:
                        distances[solver]["1"] = distances[solvers[0]]["1"]  # one step is the same with every solver
                        continue
                    images = self._images(evaluator, sampler, count, progress)
                    distances[solver][str(count)] = evaluator.scores(images)[evaluator.metric]
                    if self.watch and step is not None and (solver, count) == (solvers[0], self.stage.steps[0]):
                        drift, reason_to_end = self.watch(self._images(self.watch.evaluator, sampler, count, progress))
                    if step is not None and count == self.stage.steps[0]:
                        grid = image_grid(images[:GRID_IMAGES].float() / 255)
                        save_image_grid(grid, self.samples / f"step-{step:06d}-{solver}-{count}.png")
        means = {solver: sum(by_count.values()) / len(by_count) for solver, by_count in distances.items()}
        best = min(means, key=lambda solver: means[solver])
        incomplete = self.stage.student is not None and self.stage.method.networks.average.fraction < 1
        figures = {"solver": best, evaluator.metric: distances, "images": len(evaluator.prompts), "network": evaluator.network}
        return Validation(math.inf if incomplete else means[best], figures | drift, reason_to_end)

    def _images(
        self, evaluator: Evaluator, sampler: FewStepSampler, count: int, progress: Advance, scale: float | None = None
    ) -> Tensor:
        """The images of all prompts; each process samples its own. The scale is by default that of the student's pipeline."""
        total, guidance = len(evaluator.prompts), self.config.guidance
        scale = guidance.pipeline_scale(self.teacher.family.neutral_guidance) if scale is None else scale
        return gathered(evaluator.subset(items_of_process(total)).generate(sampler, count, scale, progress), total)

    def _of_teacher(self, evaluator: Evaluator) -> Tensor:
        """The images of the guided teacher for all prompts, by its own scheduler."""
        teacher, networks = self.teacher, self.stage.method.networks
        shared = None if networks.lora is None else networks.average.network.shared
        network = shared.without_adapter() if shared and shared.network is teacher.network else teacher.network
        frozen = replace(networks, average=teacher.denoiser.with_network(network))
        with student_pipeline(teacher, frozen) as pipeline:
            sampler = FewStepSampler(pipeline, size=teacher.size, encoded=self.encoded)
            scale = self.config.guidance.scale
            scale = teacher.family.neutral_guidance if scale == 1 else scale
            return self._images(evaluator, sampler, STEPS_OF_TEACHER, None, scale)


def validation_prompts(config: RunConfig, evaluator: Evaluator, resolution: int) -> Iterator[list[str]]:
    """The prompts that this process samples in the validations of a run, in their batches."""
    size = images_at_once(resolution, BATCH_SIZE)
    for count in (config.trainer.num_validation, config.trainer.solver_images):
        validated = evaluator.first(count)
        prompts = validated.subset(items_of_process(len(validated.prompts))).prompts
        yield from (prompts[start : start + size] for start in range(0, len(prompts), size))
    if config.watch.prompts:
        yield watched_prompts(config.watch, evaluator)


def solver_table(validation: Validation) -> str:
    """The distances of a denoiser's validation: a row for each solver and a column for each step count."""
    metric, distances = next((name, value) for name, value in validation.figures.items() if isinstance(value, dict))
    counts = list(next(iter(distances.values())))
    images = validation.figures.get("images")
    rows = [[metric if images is None else f"{metric} of {images} images", *(f"{count} steps" for count in counts), ""]]
    for solver, by_count in distances.items():
        mark = "chosen" if solver == validation.figures["solver"] else ""
        rows.append([solver, *(f"{by_count[count]:.3f}" for count in counts), mark])
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def validation_evaluator(config: RunConfig, teacher: Teacher, data: LatentData) -> Evaluator:
    """An evaluator against the real images of the run, or without these against the teacher's images. Its seeds differ from the
    seeds of `gendistill evaluate`."""
    data_config = config.data
    reference, seed = config.validation_reference or data_config.path, 1_000 + config.seed
    num = max(config.trainer.num_validation, config.trainer.solver_images)
    extractor = validation_extractor(config, teacher, reference)
    if config.validation_reference is None and (
        data_config.trigger is not None or data_config.prior_fraction or len(data) == 1
    ):
        rows = data.rows_of_step(config.seed, 0, num)  # new images and the teacher's in the ratio of the training
        texts = training_texts(data_config, teacher, data, config.seed)
        prompts = [texts[row] for row in rows.tolist()]
        return teacher_evaluator(data, teacher.codec, prompts, num=num, seed=seed, extractor=extractor, rows=rows)
    if reference is None:
        prompts = training_prompts(config.data, teacher).prompts
        return teacher_evaluator(data, teacher.codec, prompts, num=num, seed=seed, extractor=extractor)
    is_data, caption = reference == config.data.path, config.data.caption
    if is_data and caption is None:
        chosen = training_source(config.data, teacher, config.seed).choice
        caption = chosen.fields[0] if chosen.weights else None
    evaluation = EvaluationConfig(
        reference,
        caption=caption,
        num=num,
        seed=seed,
        extractor=extractor,
        cache=config.data.cache,
    )
    evaluator = build_evaluator(
        evaluation,
        image_column=config.data.image_column if is_data else None,
        split=config.data.split if is_data else None,
        clip_score=False,
    )
    if config.data.prompts is not None and not any(evaluator.captions):
        evaluator = build_evaluator(replace(evaluation, prompts=config.data.prompts), clip_score=False)
    return evaluator.first(num)


def validation_extractor(config: RunConfig, teacher: Teacher, reference: str | None) -> str:
    """The name of the feature network of a run's validations; reports the choice."""
    sampler = FewStepSampler(teacher.pipeline)
    embedded = is_embedded(teacher.size, prompts_of(sampler), reference)
    return reported_extractor(config.validation_extractor, embedded=embedded)


def reported_extractor(named: str | None, *, embedded: bool) -> str:
    """`chosen_extractor`, with a line that reports the choice and the reason for it."""
    name, reason = chosen_extractor(named, embedded=embedded)
    if PartialState().is_main_process:
        print(f"feature network: {name}, {reason}", file=sys.stderr)
    return name


def scheduler_of(solver: str, config: RunConfig, teacher: Teacher, stage: Stage) -> Any:
    """The scheduler that samples the student of a stage with `solver`: a diffusers scheduler if there is one."""
    schedule = teacher.denoiser.schedule
    if stage.scheduler is not None:
        return type(stage.scheduler).from_config(stage.scheduler.config)
    if schedule.kind == "flow":
        return flow_scheduler(solver, schedule, teacher.family.passes_sigmas)
    if schedule.kind == "edm":
        return edm_scheduler(solver, teacher.pipeline.scheduler.config, max(stage.steps))
    method: Any = stage.method  # every recipe of denoisers has a `DenoiserMethod`
    trained, timesteps = method.solver_grid, schedule.num_train_timesteps
    return student_scheduler(
        solver,
        teacher.pipeline.scheduler.config,
        method.networks.average.prediction_type,
        trained or nearest_divisors(config.consistency.num_ddim_timesteps, timesteps)[-1],
        trained_on_grid=trained is not None,
        bounded=teacher.family.bounded,
        steps=stage.steps,
        grids=stage.grids,
    )


def save_image_grid(image: Tensor, path: Path) -> None:
    """Write an image (3, H, W) in [0, 1] atomically, in the main process."""
    if PartialState().is_main_process:
        with written_alone(path) as temporary:
            Image.fromarray(to_uint8(image).permute(1, 2, 0).cpu().numpy()).save(temporary, format="png")
