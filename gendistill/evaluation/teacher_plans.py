"""A teacher's figures for comparison with its students: at 50 steps, and within few network calls by training-free solvers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from gendistill.diffusion.teacher import teacher_of
from gendistill.evaluation.evaluator import Evaluator
from gendistill.methods.compression import macs_fraction
from gendistill.metrics.protocol import Evaluation, comparable, gap_closed
from gendistill.runtime.files import atomic_write
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import FewStepSampler
from gendistill.samplers.families import family_of, network_of
from gendistill.samplers.scheduler_of import scheduler_of
from gendistill.sampling.find_grid import search_grids, searchable
from gendistill.schedulers import GridDDIMScheduler, edm_scheduler, flow_scheduler, is_edm, is_flow

TEACHER_STEPS = 50
TEACHER_SCALES = (1.0, 2.0, 3.0, 5.0)
FREE_CALLS = (8, 4, 2, 1)
SOLVERS = ("ddim", "dpm-solver++")  # standard solvers, the baseline of the gap that a student closes
SEARCHED = "ddim, searched grid"
TEACHER_SAMPLERS = (*SOLVERS, SEARCHED)
SEARCH_PROMPTS = 64


def calls_a_step(guidance_scale: float) -> int:
    """Network calls of one step: two with classifier-free guidance, one at a guidance scale of 1."""
    return 2 if guidance_scale > 1 else 1


def plans_at(scales: Sequence[float]) -> list[tuple[str, int, float]]:
    """(solver, steps, guidance scale): 50 steps, and every combination within few network calls; one step of any solver is
    DDIM.

    Args:
        scales: guidance scales of the 50 steps; few steps are also sampled without guidance.
    """
    return [
        *(("ddim", TEACHER_STEPS, scale) for scale in scales),
        *(
            (solver, calls if scale == 1 else calls // 2, scale)
            for calls in FREE_CALLS
            for solver in TEACHER_SAMPLERS
            for scale in sorted({1.0, *scales})
            if calls >= calls_a_step(scale) and (solver == "ddim" or calls > calls_a_step(scale))
        ),
    ]


TEACHER_PLANS = plans_at(TEACHER_SCALES)
FILE_NAME = "evaluation.json"


def teacher_rows(
    sampler: FewStepSampler, evaluator: Evaluator, model: str, scales: Sequence[float] | None = None
) -> list[Evaluation]:
    """The teacher's rows for `teacher_plans`: at 50 steps, then within 8, 4, 2 and 1 network calls; none without scales."""
    rows, plans = [], teacher_plans(sampler, scales)
    if not plans:
        return []
    sampling = f"sampling from the teacher, {len(plans)} times"
    with advancing_bar(sampling, len(evaluator.prompts) * len(plans)) as progress:
        grids = searched_grids(sampler, evaluator, plans) if searchable(sampler.pipeline) else {}
        for solver, steps, scale in plans:
            timesteps = grids[scale][steps] if solver == SEARCHED else None
            with solver_of(sampler, solver, timesteps, steps):
                evaluated = evaluator.evaluate(
                    sampler,
                    model=model,
                    solver=solver,
                    steps=steps,
                    guidance_scale=scale,
                    timesteps=timesteps,
                    quick=True,
                    progress=progress,
                )
            rows.append(evaluated.evaluation)
    return rows


def solver_of(
    sampler: FewStepSampler, solver: str, timesteps: list[int] | None = None, steps: int | None = None
) -> AbstractContextManager[None]:
    """A context in which the teacher samples with `solver`, in `steps` steps."""
    return scheduler_of(sampler.pipeline, teacher_scheduler(solver, sampler.pipeline, timesteps, steps))


def searched_grids(
    sampler: FewStepSampler, evaluator: Evaluator, plans: list[tuple[str, int, float]]
) -> dict[float, dict[int, list[int]]]:
    """Timesteps of the plans with a searched grid, by guidance scale and step count."""
    teacher = teacher_of(sampler.pipeline, "the teacher")
    wanted: dict[float, list[int]] = {}
    for solver, steps, scale in plans:
        if solver == SEARCHED:
            wanted.setdefault(scale, []).append(steps)
    grids = {
        scale: search_grids(teacher, evaluator.prompts[:SEARCH_PROMPTS], counts, scale) for scale, counts in wanted.items()
    }
    return {scale: {count: grid.timesteps for count, grid in by_count.items()} for scale, by_count in grids.items()}


def teacher_plans(sampler: FewStepSampler, scales: Sequence[float] | None = None) -> list[tuple[str, int, float]]:
    """The plans that a teacher supports: unguided ones only for a model without classifier-free guidance.

    Where the guidance scale is an input of the network, these are at its default.

    A pipeline that passes its sigmas has the solvers of its own scheduler alone.

    Args:
        scales: guidance scales, see `plans_at`; `TEACHER_SCALES` if None, and no plan if there are none.
    """
    if scales is not None and not scales:
        return []
    family = sampler.family
    solvers = [*(SOLVERS[:1] if family.passes_sigmas else SOLVERS), *([SEARCHED] if searchable(sampler.pipeline) else [])]
    plans = TEACHER_PLANS if scales is None else plans_at(scales)
    plans = [plan for plan in plans if (family.guided or plan[2] == 1) and plan[0] in solvers]
    return plans if family.guided else [(solver, steps, family.neutral_guidance) for solver, steps, _ in plans]


def teacher_scheduler(solver: str, pipeline: Any, timesteps: list[int] | None = None, steps: int | None = None) -> Any:
    """The scheduler of a solver for a teacher, with trailing timesteps, which are the best spacing for few steps.

    The predicted x_0 of a model of pixels is clipped as by its own scheduler; latents are never clipped.

    Args:
        timesteps: timesteps of DDIM, instead of the trailing ones.
        steps: the only step count, if it is known; EDM's schedulers have the trailing timesteps of one count.
    """
    family, config = family_of(pipeline), pipeline.scheduler.config
    if is_flow(pipeline.scheduler):
        return flow_scheduler(solver, family.schedule_of(pipeline), family.passes_sigmas)
    if is_edm(pipeline.scheduler):
        return edm_scheduler(solver, config, steps)
    clip = family.bounded and config.get("clip_sample", False)
    if timesteps is not None:
        return GridDDIMScheduler.from_config(config, grids=[timesteps], clip_sample=clip)
    if solver == "ddim":
        return DDIMScheduler.from_config(config, timestep_spacing="trailing", clip_sample=clip, set_alpha_to_one=True)
    return DPMSolverMultistepScheduler.from_config(
        config,
        timestep_spacing="trailing",
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
        variance_type=None,  # it would read the first three channels only
    )


def other_guidance_scales(sampler: FewStepSampler) -> list[float]:
    """The teacher's measured scales within a w-conditioned student's range, without its default; none for other students."""
    spec = sampler.spec
    if spec is None or spec.guidance_range is None:
        return []
    low, high = spec.guidance_range
    return [scale for scale in TEACHER_SCALES if low <= scale <= high and scale != spec.guidance_scale]


def distilled_scale(sampler: FewStepSampler, guidance_scale: float) -> float:
    """The teacher's guidance scale that corresponds to a student sampled at `guidance_scale`."""
    spec = sampler.spec
    return spec.guidance_scale if spec is not None and spec.guidance == "baked" else guidance_scale


@dataclass(frozen=True)
class Gap:
    """The gap that a student closes between the best training-free solver of equal cost and the teacher at 50 steps.

    Attributes:
        student, free, teacher: distances of the student, of that solver, and of the teacher.
    """

    network_calls: int
    student: float
    free: float
    teacher: float

    @property
    def closed(self) -> float:
        return gap_closed(self.student, self.free, self.teacher)


def gaps(student: list[Evaluation], teacher: list[Evaluation], call_cost: float = 1.0) -> list[Gap]:
    """The gap of each few-step row of a student for which the teacher has a row by `SOLVERS` at no more cost.

    Args:
        call_cost: cost of a network call of the student, relative to the teacher's.
    """
    metric = student[0].protocol.metric
    best = min((row.scores[metric] for row in teacher if row.steps == TEACHER_STEPS), default=0.0)
    result = []
    for row in student:
        cost = row.network_calls * call_cost
        within = [t.scores[metric] for t in teacher if t.network_calls <= cost and t.sampler in SOLVERS]
        if within and row.steps < TEACHER_STEPS:
            result.append(Gap(row.network_calls, row.scores[metric], min(within), best))
    return result


def relative_call_cost(student: FewStepSampler, teacher: FewStepSampler) -> float:
    """Multiply-accumulates of a call of the student's network, relative to the teacher's: 1 if they differ by less than 1 %."""
    fraction = macs_fraction(family_of(teacher.pipeline), network_of(teacher.pipeline), network_of(student.pipeline))
    return 1.0 if abs(fraction - 1) < 0.01 else fraction


def save_rows(rows: list[Evaluation], path: Path) -> None:
    """Write rows as JSON, in one piece or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")


def load_rows(path: Path) -> list[Evaluation]:
    """Read what `save_rows` wrote."""
    return [Evaluation.from_json(json.dumps(row)) for row in json.loads(path.read_text())]


def stored_rows(teacher: Path, like: Evaluation) -> list[Evaluation]:
    """The teacher's rows from the file in its folder; none without a file, or if its protocol differs from that of `like`."""
    path = teacher / FILE_NAME
    if not path.is_file():
        return []
    try:
        rows = load_rows(path)
        comparable(like, rows[0])
    except (ValueError, TypeError, LookupError):  # of another protocol or another program
        return []
    return rows


def stored_dtype(teacher: Path) -> str | None:
    """The precision in which the rows of the file in a teacher's folder were measured; None without such a file."""
    try:
        return load_rows(teacher / FILE_NAME)[0].protocol.dtype
    except (OSError, ValueError, TypeError, LookupError):
        return None
