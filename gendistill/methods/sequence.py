"""A sequence of methods in one run: each continues the student of the one before, the best by its validation.

The teacher is the same in all stages. With all weights each stage starts from a copy of the student's moving average; with LoRA
the adapter is trained further, while those of other networks, such as a fake score, are removed. Optimizers and moving averages
start anew, so that a stage equals a run with `start`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from typing import Any, Literal

import torch
from pydantic import Field

from gendistill.methods.denoiser_method import DenoiserContext
from gendistill.methods.method_registry import RECIPES, recipe_of
from gendistill.methods.recipe import Recipe, RunConfig, Stage, StageOutline, Supports
from gendistill.settings.section import Section

OF_A_STAGE = {"method", "steps", "solvers", "guidance", "trainer"}  # general settings that a stage may change
OF_VALIDATIONS = ("trainer.num_validation", "trainer.num_solver_images")  # whose prompts are encoded before the first stage
OF_TRAJECTORIES = ("guidance", "align.trajectories", "align.trajectory_steps", "align.teachers")  # generated before it, too


class SequenceConfig(Section):
    """Several methods, one after another (`--method sequence`)."""

    stages: list[dict[str, Any]] = Field(
        [{"method": "consistency"}, {"method": "distribution_matching", "trainer": {"learning_rate": 1e-5}}],
        min_length=1,
        description="Stages in order: the method of each, and its settings where they differ from the run's",
        examples=[
            [
                {"method": "latent_alignment", "trainer": {"max_minutes": 30}},
                {"method": "distribution_matching", "trainer": {"max_minutes": 60, "learning_rate": 1e-5}},
            ]
        ],
    )


class SequenceRecipe(Recipe):
    """The stages of several recipes, each in `stages/METHOD` with its student; the last student is that of the run."""

    name = section = "sequence"
    Config = SequenceConfig
    summary = "Several methods in one run, each from the best student of the one before: alignment, then matching, for example"
    supports = Supports(auxiliary_losses=True, feature_matching=True, adversary=True)

    def check(self, config: RunConfig, teacher: Any = None) -> None:
        for number, part in enumerate(self.parts(config)):
            with _named(number):
                recipe_of(part).check(part, teacher)

    def data_needs(self, config: RunConfig) -> Literal["latents", "trajectories"]:
        """Trajectories, which come with latents, where a stage needs them."""
        needs = {recipe_of(part).data_needs(part) for part in self.parts(config)}
        return "trajectories" if "trajectories" in needs else "latents"

    def parts(self, config: RunConfig) -> list[RunConfig]:
        """The settings of each stage: those of the run, updated by its own.

        Raises:
            ValueError: a setting of a stage does not exist, is not valid, or belongs to all stages.
        """
        parts = []
        for number, settings in enumerate(config.sequence.stages):
            with _named(number):
                parts.append(_settings_of_stage(config, settings))
        return parts

    def stages(self, context: DenoiserContext) -> Iterator[Stage]:
        parts = self.parts(context.config)
        for number, (name, part) in enumerate(zip(_names(parts), parts, strict=True)):
            is_last = number + 1 == len(parts)
            torch.manual_seed(part.seed + number)  # initial weights do not depend on what the stages before have computed
            for stage in recipe_of(part).stages(replace(context, config=part)):
                student = None if stage.student is None else _student(stage.student, name, is_last=is_last)
                yield replace(stage, student=student, folder=_folder(stage.folder, name), config=part)
            context = replace(context, start=stage.method.networks.average)

    def outline(self, config: RunConfig) -> list[StageOutline]:
        parts, outlines = self.parts(config), []
        for name, part in zip(_names(parts), parts, strict=True):
            for outline in recipe_of(part).outline(part):
                student = None if outline.student is None else _student(outline.student, name, is_last=part is parts[-1])
                inner = f"{name}-{outline.name}" if outline.name else name
                outlines.append(StageOutline(inner, outline.trainer, student))
        return outlines


def _settings_of_stage(config: RunConfig, settings: dict[str, Any]) -> RunConfig:
    """The settings of the run with those of a stage, validated as those of a run of its method."""
    methods = [name for name, recipe in RECIPES.items() if recipe.teaches == "denoiser"]
    methods = [name for name in methods if name not in ("compression", "fine_tuning", "sequence")]  # `compress` precedes any
    if (method := settings.get("method")) not in methods:
        raise ValueError(f"method {method}: expects one of {', '.join(methods)}")
    if of_the_run := settings.keys() & {*RunConfig.model_fields, "sequence"} - OF_A_STAGE:
        raise ValueError(f"{min(of_the_run)}: is the same in all stages; expects it outside of sequence.stages")
    values = {name: getattr(config, name) for name in type(config).model_fields if name != "sequence"}
    for name, value in settings.items():
        section = values.get(name)
        values[name] = _updated(section.model_dump(), value) if isinstance(section, Section) else value
    part = type(config)(**values)
    same = OF_VALIDATIONS + (OF_TRAJECTORIES if recipe_of(part).data_needs(part) == "trajectories" else ())
    if "embedded" in (part.guidance.mode, config.guidance.mode):
        same += ("guidance.mode",)
    for name in same:
        if attrgetter(name)(part) != attrgetter(name)(config):
            raise ValueError(f"{name}: is the same in all stages; expects it outside of sequence.stages")
    return part


def _updated(section: dict[str, Any], settings: Any) -> Any:
    """Nested settings with some changed."""
    if not isinstance(settings, dict):
        return settings
    nested = {name: _updated(section[name], value) for name, value in settings.items() if isinstance(section.get(name), dict)}
    return section | settings | nested


@contextmanager
def _named(number: int) -> Iterator[None]:
    """Errors within the context name the stage: `sequence.stages.1.trainer.batch_size`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(re.sub("^(setting )?", rf"\1sequence.stages.{number}.", str(error), count=1)) from error


def _names(parts: list[RunConfig]) -> list[str]:
    """A name for each stage: its method, with a number from the second stage of one method."""
    methods = [part.method for part in parts]
    counts = [methods[: number + 1].count(method) for number, method in enumerate(methods)]
    return [method if count == 1 else f"{method}_{count}" for method, count in zip(methods, counts, strict=True)]


def _folder(folder: str, name: str) -> str:
    """The folder in the run of a folder that a method has in a run of its own."""
    return f"stages/{name}-{folder.removeprefix('stages/')}" if folder else f"stages/{name}"


def _student(student: str, name: str, *, is_last: bool) -> str:
    """The same for a student: those of the last stage are those of the run."""
    if student.startswith("stages/"):
        return _folder(student, name)
    return student if is_last else f"stages/{name}/{student}"
