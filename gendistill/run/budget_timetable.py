"""How a run with a budget divides its time: what every part takes, and the settings with which the training fits the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from gendistill.evaluation.teacher_plans import calls_a_step
from gendistill.methods import RunConfig, recipe_of
from gendistill.run.budget_evaluation import EvaluationSize, evaluation_seconds, evaluation_sizes
from gendistill.run.budget_probe import Rates
from gendistill.run.budget_rules import (
    BATCHES,
    EVALUATION_FRACTION,
    MIN_STEPS,
    SAFETY,
    SOLVER_IMAGES,
    SYNTHETIC,
    SYNTHETIC_FRACTION,
    TRAJECTORY_STEPS,
    VALIDATED,
    VALIDATION_FRACTION,
    VISITS,
    num_trajectories,
)
from gendistill.settings.quantities import duration

END = 3.0  # seconds to print the result and to end the program
WRITING = 100 * 2**20  # bytes a second of checkpoints and exports
COPIES = 5  # of the weights that are written after the training: a checkpoint with two moments, the best, the student
FIRST_STEPS = 20  # optimizer steps of a training, at least
CHECKPOINT_MINUTES, SAVED_FRACTION = 5.0, 0.05  # between two checkpoints; of the time, at most

Configured = Callable[[float, dict[str, Any]], tuple[RunConfig, list[str]]]


@dataclass(frozen=True)
class Timetable:
    """Seconds of the parts of a run: what is reserved, and the training with what is left.

    Attributes:
        planning: start and end of the program, and the probe.
        preparation: opening of the teacher, encoding of the data and reading of the reference.
        generation: images and trajectories that the teacher generates.
        validation: the last validation and the choice of the solver.
        margin: planned for nothing.
    """

    planning: float
    preparation: float
    generation: float
    training: float
    validation: float
    export: float
    evaluation: float
    margin: float

    @property
    def after_training(self) -> float:
        return self.validation + self.export + self.evaluation

    def describe(self) -> str:
        return ", ".join(f"{name} {duration(seconds)}" for name, seconds in asdict(self).items())


def scheduled(
    seconds: float, rates: Rates, guided: bool, parts: int, configured: Configured
) -> tuple[RunConfig, Timetable, EvaluationSize, list[str]]:
    """The settings of a run that ends within `seconds`, its timetable, its evaluation and the rules that applied.

    Args:
        guided: whether the teacher has classifier-free guidance.
        parts: parts that a batch has to be split into, to fit the memory.
        configured: the settings by the rules for a number of trajectories that half of the time gives, with some changed, and
            the reasons.

    Raises:
        ValueError: the time is too short for one validation, with the least that would do.
    """
    config, _ = configured(0, {})
    planning, preparation, export = END + rates.seconds, _preparation(rates, config), _export(rates)
    fewest, limit = SYNTHETIC if config.data.path is None else (0, 0)
    sizes = evaluation_sizes(config)
    changes: dict[str, Any] = {"data.num_synthetic": fewest} if fewest else {}
    config, _ = configured(0, changes)
    costs = [evaluation_seconds(size, rates, config, guided) for size in sizes]
    chosen = next((n for n, cost in enumerate(costs) if cost <= EVALUATION_FRACTION * seconds), len(sizes) - 1)
    smallest = validation_seconds(VALIDATED[-1], rates, config.steps)
    min_training = smallest + FIRST_STEPS * BATCHES[-1] * max(rates.steps.values())
    minimum = planning + preparation + export + _generation(rates, config, guided) + 2 * smallest + min_training
    usable = seconds * (1 - SAFETY)
    if minimum + costs[chosen] > usable:
        chosen = len(sizes) - 1
    if minimum + costs[chosen] > usable:
        raise ValueError(
            f"a budget of {duration(seconds)} is too short for one validation of this teacher; the least that would do is "
            f"{duration((minimum + costs[chosen]) / (1 - SAFETY))}"
        )
    rest = usable - planning - preparation - export - costs[chosen]
    validated = next((n for n in VALIDATED if validation_seconds(n, rates, config.steps) <= 0.1 * rest), VALIDATED[-1])
    one = validation_seconds(validated, rates, config.steps)
    of_solver = validation_seconds(SOLVER_IMAGES, rates, config.steps)
    picks = len(rates.solvers) > 1 and max(config.steps) > 1 and of_solver <= 0.1 * rest
    validation = 2 * one + picks * of_solver
    rest -= validation
    changes |= {"trainer.num_validation": validated, "trainer.num_solver_images": SOLVER_IMAGES if picks else 0}
    if fewest:
        each = _image_seconds(rates, config, guided)
        changes["data.num_synthetic"] = min(limit, max(fewest, int(SYNTHETIC_FRACTION * rest / each)))
    config, _ = configured(0, changes)
    free = rest - _generation(rates, config, guided)
    trajectory = TRAJECTORY_STEPS * (2 if guided else 1) * rates.call
    config, reasons = configured(free / 2 / trajectory, changes)
    aligns = recipe_of(config).data_needs(config) == "trajectories"
    sample = rates.steps[config.method]
    batch = next((size for size in BATCHES if free / (1 + aligns) / (size * sample) >= MIN_STEPS), BATCHES[-1])
    changes |= {"trainer.batch_size": batch, "trainer.gradient_accumulation_steps": min(parts, batch)}
    if aligns:
        changes["align.trajectories"] = num_trajectories(free, trajectory, batch * sample, batch)
    config, _ = configured(free / 2 / trajectory, changes)
    generation = _generation(rates, config, guided)
    training = rest - generation
    if training < min_training:
        raise ValueError(
            f"a budget of {duration(seconds)} is too short for this data; the least that would do is "
            f"{duration(seconds + (min_training - training) / (1 - SAFETY))}"
        )
    config, _ = configured(
        free / 2 / trajectory, changes | _limits(config, training, one, config.trainer.batch_size * sample, rates)
    )
    table = Timetable(planning, preparation, generation, training, validation, export, costs[chosen], seconds - usable)
    return config, table, sizes[chosen], reasons


def validation_seconds(images: int, rates: Rates, steps: list[int]) -> float:
    """The time of a validation on `images` images, by all solvers at all step counts; one step is the same with each."""
    sets = [count for number, _ in enumerate(rates.solvers) for count in steps if count > 1 or number == 0]
    each = sum(sets) * rates.call + len(sets) * (rates.decode + rates.features)
    return images * each + len(sets) * rates.distance


def _limits(config: RunConfig, training: float, validation: float, step: float, rates: Rates) -> dict[str, Any]:
    """Length of the training, and intervals of its validations and checkpoints."""
    count = int(VALIDATION_FRACTION * training / validation)  # in addition to the first and the last
    steps = max(1, int((training - (1 + count) * validation) / step))
    max_steps = 4 * steps  # the time is the limit
    if recipe_of(config).data_needs(config) == "trajectories":
        max_steps = min(max_steps, max(1, VISITS * config.align.trajectories // config.trainer.batch_size))
    saving = COPIES * rates.bytes / WRITING / SAVED_FRACTION / 60
    return {
        "trainer.max_minutes": math.floor(training / 60 * 100) / 100 or training / 60,
        "trainer.max_steps": max_steps,
        "trainer.validate_every": max(1, min(steps, max_steps) // (count + 1)) if count else max_steps,
        "trainer.checkpoint_every": max_steps,
        "trainer.checkpoint_minutes": round(max(CHECKPOINT_MINUTES, saving), 1),
    }


def _preparation(rates: Rates, config: RunConfig) -> float:
    """Opening, encoding of the images, their features for the reference, and the prompts of validations."""
    image = 2 * rates.read + rates.encode + rates.prompt + rates.features
    return rates.opening + rates.images * image + (VALIDATED[0] + SOLVER_IMAGES) * rates.prompt


def _image_seconds(rates: Rates, config: RunConfig, guided: bool) -> float:
    """The time of an image that the teacher generates for training, and of its features for the reference."""
    calls = config.data.synthetic_steps * (calls_a_step(config.data.synthetic_guidance) if guided else 1)
    return calls * rates.call + rates.prompt + rates.decode + rates.features


def _generation(rates: Rates, config: RunConfig, guided: bool) -> float:
    """The time of the images and trajectories that the teacher generates."""
    seconds = 0.0 if config.data.path is not None else config.data.num_synthetic * _image_seconds(rates, config, guided)
    if recipe_of(config).data_needs(config) == "trajectories":
        calls = config.align.trajectory_steps * (calls_a_step(config.guidance.scale) if guided else 1)
        seconds += config.align.trajectories * calls * rates.call
    return seconds


def _export(rates: Rates) -> float:
    """The time of the last checkpoint, of opening the best weights and of writing the student."""
    return COPIES * rates.bytes / WRITING + 2 * rates.opening
