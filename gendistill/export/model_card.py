"""The model card of a student: description, usage with diffusers, guidance, and provenance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
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

A few-step student of {teacher}, distilled with gendistill (method: {method}) and validated at {all_steps} steps.

## Usage

```python
{usage}
```

{guidance}

## Provenance

| | |
|---|---|
{provenance}
"""

FULL_USAGE = """\
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("PATH_OF_THIS_FOLDER"{null})
image = {call}.images[0]"""

LORA_USAGE = """\
from diffusers import {scheduler}, {pipeline}

pipeline = {pipeline}.{opening}
{loras}
pipeline.scheduler = {scheduler}.from_pretrained("PATH_OF_THIS_FOLDER", subfolder="scheduler")
image = {call}.images[0]"""

GUIDANCE = {
    "embedded": (
        "`guidance_scale` is an input of the network (guidance embedding), trained on scales from {low:g} to {high:g}. Each "
        "step needs one network call."
    ),
    "baked": (
        "Guidance with scale {scale:g} is distilled into the weights: call the pipeline with `guidance_scale=1`, which needs "
        "one network call per step. A larger value applies guidance a second time and doubles the number of network calls."
    ),
    "cfg": (
        "Classifier-free guidance and negative prompts work as with the teacher. Guidance needs two network calls per step."
    ),
}
BAKED_INPUT = (
    "Guidance with scale {scale:g} is distilled into the weights, for the pipeline's default of `guidance_scale`, {neutral:g}, "
    "which is an input of the network. Each step needs one network call."
)
UNGUIDED = "The model has no guidance; each step needs one network call."


def model_card(spec: StudentSpec, provenance: dict[str, Any], family: Family, null_parts: Sequence[str] = ()) -> str:
    """The README.md of a student folder.

    Args:
        provenance: one table row per key; `licence` also goes into the metadata.
        null_parts: parts that the pipeline lacks although diffusers expects them.
    """
    null = "".join(f", {name}=None" for name in null_parts)
    low, high = spec.guidance_range or (1.0, 1.0)
    size = "" if spec.size is None else f", height={spec.size[0]}, width={spec.size[1]}"
    usage = (LORA_USAGE if spec.lora else FULL_USAGE).format(
        call=family.example.format(
            steps=spec.num_inference_steps[0],
            scale=spec.pipeline_guidance_scale,
            eta=(f", eta={spec.eta:g}" if spec.eta else "") + size,
        ),
        pipeline=family.pipelines[0],
        opening=_opening(spec, null),
        loras=_loading(spec),
        null=null,
        scheduler=spec.scheduler_class,
    )
    guidance = GUIDANCE[spec.guidance] if family.has_guidance else UNGUIDED
    if family.guidance_input and spec.guidance == "baked":
        guidance = BAKED_INPUT
    rows = {
        "teacher": spec.teacher,
        **{f"teacher LoRA {number}": lora.describe() for number, lora in enumerate(spec.teacher_loras, 1)},
        "solver": f"{spec.solver} ({spec.scheduler_class})",
        **provenance,
        **{name: f"{value:.4g}" for name, value in spec.figures.items()},
    }
    return CARD.format(
        teacher=name_of_teacher(spec.teacher),
        task=family.task,
        licence=provenance.get("licence", "unknown"),
        method=spec.method,
        lora_tag=", lora" if spec.lora else "",
        steps=spec.num_inference_steps[0],
        all_steps=", ".join(map(str, spec.num_inference_steps)),
        usage=usage,
        guidance=guidance.format(low=low, high=high, scale=spec.guidance_scale, neutral=spec.neutral_guidance),
        provenance="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
    )


def name_of_teacher(teacher: str) -> str:
    """A hub id or a name as it is, and a path without its folders, which are those of one machine."""
    return Path(teacher).name if Path(teacher).is_absolute() else teacher


def _loading(spec: StudentSpec) -> str:
    """The diffusers calls that load a LoRA, after those that are merged into its teacher."""
    if not spec.teacher_loras or spec.lora_on_original:
        return 'pipeline.load_lora_weights("PATH_OF_THIS_FOLDER")'
    named = {f"teacher-{number}": lora for number, lora in enumerate(spec.teacher_loras, 1)}
    lines = [f'pipeline.load_lora_weights("{Path(lora.path).name}", adapter_name="{name}")' for name, lora in named.items()]
    lines.append('pipeline.load_lora_weights("PATH_OF_THIS_FOLDER", adapter_name="steps")')
    weights = [*(lora.weight for lora in named.values()), 1.0]
    names = ", ".join(f'"{name}"' for name in [*named, "steps"])
    return "\n".join([*lines, f"pipeline.set_adapters([{names}], [{', '.join(f'{weight:g}' for weight in weights)}])"])


def _opening(spec: StudentSpec, null: str) -> str:
    """The diffusers call that opens the teacher of a LoRA, with the arguments of its null parts."""
    if spec.teacher.endswith(".safetensors"):
        return f'from_single_file("{spec.teacher}")'
    revision = f', revision="{spec.teacher_revision}"' if spec.teacher_revision else ""
    return f'from_pretrained("{spec.teacher}"{revision}{null})'
