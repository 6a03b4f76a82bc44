"""The model card of a student: what it is, how to sample it, where it comes from."""

from __future__ import annotations

from typing import Any

from gendistill.samplers import StudentSpec
from gendistill.samplers.families import Family

CARD = """\
---
library_name: diffusers
pipeline_tag: {task}
base_model: {teacher}
license: {licence}
tags: [gendistill, distillation, few-step, {method}{lora_tag}]
---

# {steps}-step student of {teacher}

Distilled by gendistill ({method}). One network call a step; validated at {all_steps} steps.

```python
{usage}
```

{guidance}

## Lineage

| | |
|---|---|
{provenance}
"""

FULL_USAGE = """\
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("PATH_OF_THIS_FOLDER")
image = {call}.images[0]"""

LORA_USAGE = """\
from diffusers import {scheduler}, {pipeline}

pipeline = {pipeline}.{opening}
pipeline.load_lora_weights("PATH_OF_THIS_FOLDER")
pipeline.scheduler = {scheduler}.from_pretrained("PATH_OF_THIS_FOLDER", subfolder="scheduler")
image = {call}.images[0]"""

GUIDANCE = {
    "embedded": "`guidance_scale` is an input of the network, trained from {low:g} to {high:g}; it costs no second call.",
    "baked": (
        "Guidance of scale {scale:g} is baked in: call the pipeline with `guidance_scale=1`. A larger value guides twice "
        "and doubles the time."
    ),
    "cfg": "Classifier-free guidance works as in the teacher, negative prompts too; it costs two network calls a step.",
}


def model_card(spec: StudentSpec, provenance: dict[str, Any], family: Family) -> str:
    """README.md for a student folder. `provenance` is told as it is, one row a key; `licence` goes to the head."""
    low, high = spec.guidance_range or (1.0, 1.0)
    usage = (LORA_USAGE if spec.lora else FULL_USAGE).format(
        call=family.example.format(
            steps=spec.num_inference_steps[0],
            scale=spec.pipeline_guidance_scale,
            eta=f", eta={spec.eta:g}" if spec.eta else "",
        ),
        pipeline=family.pipelines[0],
        opening=_opening(spec),
        scheduler=spec.scheduler_class,
    )
    guidance = GUIDANCE[spec.guidance] if family.guided else "The teacher knows no guidance, and the student neither."
    rows = {
        "teacher": spec.teacher,
        "solver": f"{spec.solver} ({spec.scheduler_class})",
        **provenance,
        **{name: f"{value:.4g}" for name, value in spec.figures.items()},
    }
    return CARD.format(
        teacher=spec.teacher,
        task=family.task,
        licence=provenance.get("licence", "unknown"),
        method=spec.method,
        lora_tag=", lora" if spec.lora else "",
        steps=spec.num_inference_steps[0],
        all_steps=", ".join(map(str, spec.num_inference_steps)),
        usage=usage,
        guidance=guidance.format(low=low, high=high, scale=spec.guidance_scale),
        provenance="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
    )


def _opening(spec: StudentSpec) -> str:
    """How diffusers opens the teacher that a LoRA belongs to."""
    if spec.teacher.endswith(".safetensors"):
        return f'from_single_file("{spec.teacher}")'
    revision = f', revision="{spec.teacher_revision}"' if spec.teacher_revision else ""
    return f'from_pretrained("{spec.teacher}"{revision})'
