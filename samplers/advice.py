"""What to know before a student is sampled in another way than it was made for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gendistill.samplers.spec import StudentSpec


def advice(spec: StudentSpec, pipeline: Any, steps: int, guidance_scale: float) -> Iterator[str]:
    """Sentences, each with what to take instead; none where all is as the student wants it."""
    if steps not in spec.num_inference_steps:
        trained = ", ".join(map(str, spec.num_inference_steps))
        yield f"steps {steps}: the student was made for {trained}; other numbers mostly look worse"
    if spec.guidance == "baked" and guidance_scale > 1:
        yield (
            f"guidance_scale {guidance_scale:g}: guidance is baked into the student; above 1 it is guided twice, in twice the "
            f"time, and looks burnt; expects 1"
        )
    low, high = spec.guidance_range or (guidance_scale, guidance_scale)
    if spec.guidance == "embedded" and not low <= guidance_scale <= high:
        yield f"guidance_scale {guidance_scale:g}: the student was trained for {low:g} to {high:g}"
    has, wants = type(pipeline.scheduler).__name__, spec.scheduler_class
    spacing, wanted = pipeline.scheduler.config.get("timestep_spacing"), spec.scheduler_config.get("timestep_spacing")
    if has != wants:
        yield f"scheduler {has}: the student is sampled by {wants}; expects pipeline.scheduler = sampler.spec.scheduler()"
    elif spacing != wanted:
        yield f"scheduler: timestep_spacing {spacing}; the student is sampled at {wanted}"
