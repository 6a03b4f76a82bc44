"""The methods there are. `gendistill.methods` registers those of this package; others may be added by `register`."""

from __future__ import annotations

from gendistill.methods.recipe import Recipe, RunConfig

RECIPES: dict[str, Recipe] = {}


def register(recipe: Recipe) -> None:
    """Add a method: `--method NAME`, its section of settings, its line in help texts.

    Raises:
        ValueError: there is another method of that name, or its section is taken.
    """
    taken = {known.section for known in RECIPES.values()} | set(RunConfig.model_fields)
    if recipe.name in RECIPES or recipe.section in taken:
        raise ValueError(f"method {recipe.name} (settings {recipe.section}) is registered already; expects another name")
    RECIPES[recipe.name] = recipe


def recipe_of(config: RunConfig) -> Recipe:
    """The recipe of `config.method`."""
    return RECIPES[config.method]


def compresses(config: RunConfig) -> bool:
    """Whether a smaller denoiser than the teacher is distilled, in a first stage or alone."""
    compress = config.compress
    requested = compress.blocks or compress.factor is not None or compress.student_config is not None
    return requested and recipe_of(config).supports.compression


def may_be_lora(config: RunConfig) -> bool:
    """Whether the student could be a LoRA as well, by its other settings."""
    full_weights = compresses(config) or config.start is not None or config.quantization != "none"
    return recipe_of(config).supports.lora and not full_weights and config.guidance.mode != "embedded"
