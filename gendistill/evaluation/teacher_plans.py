"""Figures of a student beside its teacher: at full length, and within as many network calls by training-free solvers."""

from __future__ import annotations

import dataclasses
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel

from gendistill.diffusion.teacher import teacher_of
from gendistill.evaluation.evaluator import Evaluator
from gendistill.metrics.protocol import Evaluation, comparable, gap_closed
from gendistill.networks.pruning.unet_pruning import macs_fraction
from gendistill.runtime.files import atomic_write
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import FewStepSampler
from gendistill.samplers.families import network_of
from gendistill.samplers.scheduler_of import scheduler_of
from gendistill.sampling.find_grid import search_grids, searchable
from gendistill.schedulers import GridDDIMScheduler

TEACHER_STEPS = 50
TEACHER_SCALES = (1.0, 2.0, 3.0, 5.0)
FREE_CALLS = (8, 4, 2, 1)
SOLVERS = ("ddim", "dpm-solver++")  # what anyone has: those that a student's gap is measured from
SEARCHED = "ddim, searched grid"
TEACHER_SAMPLERS = (*SOLVERS, SEARCHED)
SEARCH_PROMPTS = 64


def calls_a_step(guidance_scale: float) -> int:
    """Network calls of one step of classifier-free guidance; a scale of 1 is none."""
    return 2 if guidance_scale > 1 else 1


# (solver, steps, guidance scale): the teacher at full length, and all that fits within a few calls; in one step all
# solvers are DDIM
TEACHER_PLANS = [
    *(("ddim", TEACHER_STEPS, scale) for scale in TEACHER_SCALES),
    *(
        (solver, calls if scale == 1 else calls // 2, scale)
        for calls in FREE_CALLS
        for solver in TEACHER_SAMPLERS
        for scale in TEACHER_SCALES
        if calls >= calls_a_step(scale) and (solver == "ddim" or calls > calls_a_step(scale))
    ),
]
FILE_NAME = "evaluation.json"


def teacher_rows(sampler: FewStepSampler, evaluator: Evaluator, model: str) -> list[Evaluation]:
    """The teacher's rows, as `TEACHER_PLANS` has them: at full length, then within 8, 4, 2 and 1 network calls."""
    rows, plans = [], teacher_plans(sampler)
    with advancing_bar("sampling from the teacher", len(evaluator.prompts) * len(plans)) as progress:
        grids = searched_grids(sampler, evaluator) if searchable(sampler.pipeline) else {}
        for solver, steps, scale in plans:
            timesteps = grids[scale][steps] if solver == SEARCHED else None
            with solver_of(sampler, solver, timesteps):
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


def solver_of(sampler: FewStepSampler, solver: str, timesteps: list[int] | None = None) -> AbstractContextManager[None]:
    """A teacher that is sampled by `solver` inside a `with` block."""
    config, bounded = sampler.pipeline.scheduler.config, sampler.family.bounded
    return scheduler_of(sampler.pipeline, teacher_scheduler(solver, config, bounded=bounded, timesteps=timesteps))


def searched_grids(sampler: FewStepSampler, evaluator: Evaluator) -> dict[float, dict[int, list[int]]]:
    """Timesteps by guidance scale and number of steps, of the teacher's plans that go by a searched grid."""
    teacher = teacher_of(sampler.pipeline, "the teacher")
    wanted: dict[float, list[int]] = {}
    for solver, steps, scale in teacher_plans(sampler):
        if solver == SEARCHED:
            wanted.setdefault(scale, []).append(steps)
    found = {
        scale: search_grids(teacher, evaluator.prompts[:SEARCH_PROMPTS], counts, scale) for scale, counts in wanted.items()
    }
    return {scale: {count: grid.timesteps for count, grid in of.items()} for scale, of in found.items()}


def teacher_plans(sampler: FewStepSampler) -> list[tuple[str, int, float]]:
    """The plans that a teacher can be sampled by: without guidance, the unguided ones."""
    followed = searchable(sampler.pipeline)
    return [plan for plan in TEACHER_PLANS if (sampler.family.guided or plan[2] == 1) and (plan[0] != SEARCHED or followed)]


def teacher_scheduler(solver: str, config: Any, *, bounded: bool = False, timesteps: list[int] | None = None) -> Any:
    """The solvers that a teacher is sampled with in a comparison, each on the grid that suits few steps best (trailing).

    Args:
        bounded: what is diffused is images, whose x_0 the teacher's scheduler may clip; latents never are.
        timesteps: of DDIM, instead of the trailing ones.
    """
    clip = bounded and config.get("clip_sample", False)
    if timesteps is not None:
        return GridDDIMScheduler.from_config(config, grids=[timesteps], clip_sample=clip)
    if solver == "ddim":
        return DDIMScheduler.from_config(config, timestep_spacing="trailing", clip_sample=clip, set_alpha_to_one=True)
    return DPMSolverMultistepScheduler.from_config(
        config, timestep_spacing="trailing", algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )


def slider_scales(sampler: FewStepSampler) -> list[float]:
    """The other scales, of those that the teacher is measured at, that a w-conditioned student knows; none for others."""
    spec = sampler.spec
    if spec is None or spec.guidance_range is None:
        return []
    low, high = spec.guidance_range
    return [scale for scale in TEACHER_SCALES if low <= scale <= high and scale != spec.guidance_scale]


def distilled_scale(sampler: FewStepSampler, guidance_scale: float) -> float:
    """The guidance scale of the teacher that a student sampled at `guidance_scale` imitates."""
    spec = sampler.spec
    return spec.guidance_scale if spec is not None and spec.guidance == "baked" else guidance_scale


@dataclass(frozen=True)
class Gap:
    """How much of the way from the best that costs no training to the teacher a student goes, at equal cost."""

    network_calls: int
    student: float
    free: float
    teacher: float

    @property
    def closed(self) -> float:
        return gap_closed(self.student, self.free, self.teacher)


def gaps(student: list[Evaluation], teacher: list[Evaluation], share: float = 1.0) -> list[Gap]:
    """One for each row of a few-step student whose cost the teacher was measured within by `SOLVERS`.

    Args:
        share: what a call of the student costs, in calls of its teacher.
    """
    metric = student[0].protocol.metric
    best = min(row.scores[metric] for row in teacher if row.steps == TEACHER_STEPS)
    result = []
    for row in student:
        cost = row.network_calls * share
        within = [t.scores[metric] for t in teacher if t.network_calls <= cost and t.sampler in SOLVERS]
        if within and row.steps < TEACHER_STEPS:
            result.append(Gap(row.network_calls, row.scores[metric], min(within), best))
    return result


def cost_of_a_call(student: FewStepSampler, teacher: FewStepSampler) -> float:
    """Multiply-accumulates of a call of the student's network, in calls of the teacher's: 1 where the two are alike, to 1 %."""
    known: Any = UNet2DConditionModel  # diffusers' own types know nothing of its config
    networks = [network_of(of.pipeline) for of in (teacher, student)]
    if not all(isinstance(of, known) for of in networks):
        return 1.0
    share = macs_fraction(*(of.config for of in networks))
    return 1.0 if abs(share - 1) < 0.01 else share


def save_rows(rows: list[Evaluation], path: Path) -> None:
    """Write rows as JSON, in one piece or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")


def load_rows(path: Path) -> list[Evaluation]:
    """Read what `save_rows` wrote."""
    return [Evaluation.from_json(json.dumps(row)) for row in json.loads(path.read_text())]


def stored_rows(teacher: Path, like: Evaluation) -> list[Evaluation]:
    """The teacher's rows from the file beside its weights; none where there is no file, or it was evaluated otherwise."""
    path = teacher / FILE_NAME
    if not path.is_file():
        return []
    rows = load_rows(path)
    try:
        comparable(like, rows[0])
    except ValueError:
        return []
    return rows
