"""Validation of denoisers: the images of every step count and solver select the checkpoint and solver of the student."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from PIL import Image
from torch import Tensor

from gendistill.data.batches import LatentData
from gendistill.data.encode import training_prompts, training_source
from gendistill.diffusion.teacher import Teacher
from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.evaluation.evaluator import Evaluator, build_evaluator, teacher_evaluator
from gendistill.export.student_folder import student_pipeline
from gendistill.methods import RunConfig, Stage
from gendistill.runtime.files import written_alone
from gendistill.samplers import FewStepSampler, image_grid, to_uint8
from gendistill.schedulers import nearest_divisors, solver_eta, student_scheduler
from gendistill.training.processes import gathered, items_of_process
from gendistill.training.state import Validation

GRID_IMAGES = 32


class Validator:
    """Validates the EMA of a stage at all step counts with all its solvers, and saves image grids at fixed seeds."""

    def __init__(self, config: RunConfig, teacher: Teacher, stage: Stage, evaluator: Evaluator, samples: Path) -> None:
        self.config, self.teacher, self.stage, self.evaluator, self.samples = config, teacher, stage, evaluator, samples
        samples.mkdir(parents=True, exist_ok=True)

    def __call__(self, step: int) -> Validation:
        """The score of a checkpoint: the best solver's distance, averaged over the step counts. All processes sample.

        It is infinite for a student that cannot be exported yet, since it is still changing its prediction type.
        """
        with student_pipeline(self.teacher, self.stage.method.networks) as pipeline:
            return self._validate(FewStepSampler(pipeline), step)

    def _validate(self, sampler: FewStepSampler, step: int) -> Validation:
        steps, solvers = self.stage.steps, self.stage.solvers
        distances: dict[str, dict[str, float]] = {}
        for solver in solvers:
            sampler.pipeline.scheduler = scheduler_of(solver, self.config, self.teacher, self.stage)
            sampler.eta = solver_eta(solver)
            distances[solver] = {}
            for count in steps:
                if count == 1 and solver != solvers[0]:
                    distances[solver]["1"] = distances[solvers[0]]["1"]  # one step is the same with every solver
                    continue
                subset = self.evaluator.subset(items_of_process(len(self.evaluator.prompts)))
                images = subset.generate(sampler, count, self.config.guidance.pipeline_scale)
                images = gathered(images, len(self.evaluator.prompts))
                distances[solver][str(count)] = self.evaluator.scores(images)[self.evaluator.metric]
                if count == steps[0]:
                    grid = image_grid(images[:GRID_IMAGES].float() / 255)
                    save_image_grid(grid, self.samples / f"step-{step:06d}-{solver}-{count}.png")
        means = {solver: sum(by_count.values()) / len(by_count) for solver, by_count in distances.items()}
        best = min(means, key=lambda solver: means[solver])
        incomplete = self.stage.student is not None and self.stage.method.networks.average.fraction < 1
        return Validation(math.inf if incomplete else means[best], {"solver": best, self.evaluator.metric: distances})


def validation_evaluator(config: RunConfig, teacher: Teacher, data: LatentData) -> Evaluator:
    """An evaluator against the real images of the run, or without these against the teacher's images. Its seeds differ from the
    seeds of `gendistill evaluate`."""
    reference, num, seed = config.validation_reference or config.data.path, config.trainer.num_validation, 1_000 + config.seed
    if reference is None:
        prompts = training_prompts(config.data, teacher).prompts
        return teacher_evaluator(data, teacher.codec, prompts, num=num, seed=seed, extractor=config.validation_extractor)
    is_data, caption = reference == config.data.path, config.data.caption
    if is_data and caption is None:
        chosen = training_source(config.data, teacher, config.seed).choice
        caption = chosen.fields[0] if chosen.weights else None
    evaluation = EvaluationConfig(
        reference,
        caption=caption,
        num=num,
        seed=seed,
        extractor=config.validation_extractor,
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


def scheduler_of(solver: str, config: RunConfig, teacher: Teacher, stage: Stage) -> Any:
    """The scheduler that samples the student of a stage with `solver`: a diffusers scheduler if there is one."""
    trained, timesteps = stage.method.solver_grid, teacher.denoiser.schedule.num_train_timesteps
    return student_scheduler(
        solver,
        teacher.pipeline.scheduler.config,
        stage.method.networks.average.prediction_type,
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
