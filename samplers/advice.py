"""Warnings about sampling a student with other settings than its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gendistill.samplers.spec import StudentSpec


def advice(spec: StudentSpec, pipeline: Any, steps: int, guidance_scale: float) -> Iterator[str]:
    """Sentences, each with the student's own setting; none if all settings agree."""
    if steps not in spec.num_inference_steps:
        trained = ", ".join(map(str, spec.num_inference_steps))
        yield f"steps {steps}: the student was made for {trained}; other step counts usually give worse images"
    if spec.guidance == "baked" and spec.neutral_guidance != 1:
        if guidance_scale != spec.neutral_guidance:
            yield f"guidance_scale {guidance_scale:g}: the student was trained for {spec.neutral_guidance:g} alone"
    elif spec.guidance == "baked" and guidance_scale > 1:
        yield (
            f"guidance_scale {guidance_scale:g}: guidance is baked into the student; a scale above 1 guides it twice, in twice "
            f"the time, and oversaturates the images; expects 1"
        )
    low, high = spec.guidance_range or (guidance_scale, guidance_scale)
    if spec.guidance == "embedded" and not low <= guidance_scale <= high:
        yield f"guidance_scale {guidance_scale:g}: the student was trained for {low:g} to {high:g}"
    name, own_name = type(pipeline.scheduler).__name__, spec.scheduler_class
    spacing, own_spacing = pipeline.scheduler.config.get("timestep_spacing"), spec.scheduler_config.get("timestep_spacing")
    if name != own_name:
        yield f"scheduler {name}: the student is sampled by {own_name}; expects pipeline.scheduler = sampler.spec.scheduler()"
    elif spacing != own_spacing:
        yield f"scheduler: timestep_spacing {spacing}; the student is sampled at {own_spacing}"
