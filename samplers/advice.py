"""What to know before a student is sampled in another way than it was made for."""

from __future__ import annotations

from typing import Any

from gendistill.samplers.spec import StudentSpec


def advice(spec: StudentSpec, pipeline: Any, steps: int, guidance_scale: float) -> list[str]:
    """Sentences, each with what to take instead; none where all is as the student wants it."""
    return [
        *_of_steps(spec, steps),
        *_of_guidance(spec, guidance_scale),
        *_of_scheduler(spec, pipeline.scheduler),
    ]


def _of_steps(spec: StudentSpec, steps: int) -> list[str]:
    if steps in spec.num_inference_steps:
        return []
    trained = ", ".join(map(str, spec.num_inference_steps))
    return [f"steps {steps}: the student was made for {trained}; other numbers mostly look worse"]


def _of_guidance(spec: StudentSpec, scale: float) -> list[str]:
    if spec.guidance == "baked" and scale > 1:
        return [
            f"guidance_scale {scale:g}: guidance is baked into the student; above 1 it is guided twice, in twice the time, and "
            f"looks burnt; takes 1"
        ]
    if spec.guidance == "embedded" and spec.guidance_range is not None:
        low, high = spec.guidance_range
        if not low <= scale <= high:
            return [f"guidance_scale {scale:g}: the student was trained for {low:g} to {high:g}"]
    return []


def _of_scheduler(spec: StudentSpec, scheduler: Any) -> list[str]:
    has, wants = type(scheduler).__name__, spec.scheduler_class
    if has != wants:
        return [f"scheduler {has}: the student is sampled by {wants}; takes pipeline.scheduler = sampler.spec.scheduler()"]
    spacing, wanted = scheduler.config.get("timestep_spacing"), spec.scheduler_config.get("timestep_spacing")
    if spacing != wanted:
        return [f"scheduler: timestep_spacing {spacing}; the student is sampled at {wanted}"]
    return []
