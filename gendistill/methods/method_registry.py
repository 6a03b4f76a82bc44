"""The registry of methods. `gendistill.methods` registers those of this package; `register` adds others."""

from __future__ import annotations

from gendistill.methods.recipe import Recipe, RunConfig

RECIPES: dict[str, Recipe] = {}


def register(recipe: Recipe) -> None:
    """Add a method: `--method NAME`, its section of settings, its line in help texts.

    Raises:
        ValueError: another method has the same name or the same section of settings.
    """
    sections = {known.section for known in RECIPES.values()} | set(RunConfig.model_fields)
    if recipe.name in RECIPES or recipe.section in sections:
        raise ValueError(f"method {recipe.name} (settings {recipe.section}) is registered already; expects another name")
    RECIPES[recipe.name] = recipe


def recipe_of(config: RunConfig) -> Recipe:
    """The recipe of `config.method`."""
    return RECIPES[config.method]


def compresses(config: RunConfig) -> bool:
    """Whether the denoiser is compressed, in a first stage or as the method."""
    compress = config.compress
    requested = compress.blocks or compress.factor is not None or compress.student_config is not None
    return requested and recipe_of(config).supports.compression


def may_be_lora(config: RunConfig) -> bool:
    """Whether the settings other than `lora` allow a LoRA as the student."""
    full_weights = compresses(config) or config.start is not None or config.quantization != "none"
    return recipe_of(config).supports.lora and not full_weights and config.guidance.mode != "embedded"
