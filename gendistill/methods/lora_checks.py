"""Checks of the settings of LoRAs: those of the teacher, those that are added in training, and the form of the student."""

from __future__ import annotations

from gendistill.methods.method_registry import RECIPES, compresses
from gendistill.methods.recipe import Recipe, RunConfig

LORA_OUTPUTS = ("base-lora", "steps-lora")


def exports_lora(config: RunConfig) -> bool:
    """Whether the student is written as a LoRA."""
    return config.output in LORA_OUTPUTS or (config.output == "as-trained" and config.lora.enabled)


def check_loras(config: RunConfig, recipe: Recipe) -> None:
    """Raise ValueError, in one sentence, where the settings of LoRAs are not compatible with the method or with each other."""
    requested = {
        "teacher_loras": bool(config.teacher_loras),
        "output": config.output != "as-trained",
        "compatible.loras": config.compatible.loras is not None,
    }
    for name in (name for name, is_requested in requested.items() if is_requested and recipe.teaches != "denoiser"):
        raise ValueError(f"{name}: expects a method that trains a denoiser, not {config.method}")
    if config.output != "as-trained":
        _check_output(config, recipe)
    if config.compatible.loras is not None:
        _check_compatible(config, recipe)


def _check_output(config: RunConfig, recipe: Recipe) -> None:
    output = config.output
    if config.lora.quantization != "none" and output != "steps-lora":
        raise ValueError(f"output {output}: needs the full weights of the teacher; expects lora.quantization=none")
    if output not in LORA_OUTPUTS:
        return
    if compresses(config) or not recipe.supports.lora:
        raise ValueError(f"output {output}: a pruned network is no change of the teacher's; expects output=folder")
    if config.quantization != "none":
        raise ValueError(f"output {output}: a LoRA has no quantized layers; expects quantization=none or output=folder")


def _check_compatible(config: RunConfig, recipe: Recipe) -> None:
    if other := [part.method for part in recipe.parts(config) if not RECIPES[part.method].supports.added_loras]:
        supporting = ", ".join(name for name, known in RECIPES.items() if known.supports.added_loras)
        raise ValueError(
            f"compatible.loras: --method {other[0]} does not call the teacher in its steps, so that a LoRA cannot be added to "
            f"it; expects one of {supporting}"
        )
    if compresses(config):
        raise ValueError("compatible.loras: LoRAs of the teacher do not fit a pruned network; expects no compress")
    for section in ("align", "feature_matching", "adversarial"):
        if getattr(config, section).weight != 0:
            raise ValueError(f"{section}.weight: its targets are images without the added LoRAs of compatible.loras; expects 0")
