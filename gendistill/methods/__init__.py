"""Distillation methods, one file each with its settings, checks, stages and mathematics. This package registers them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gendistill.diffusion.int8_training import compute_as_int8
from gendistill.methods.compression import CompressionRecipe, first_outline
from gendistill.methods.consistency import ConsistencyRecipe
from gendistill.methods.decoder import DecoderRecipe
from gendistill.methods.denoiser_method import DenoiserContext, DenoiserMethod
from gendistill.methods.distribution_matching import DistributionMatchingRecipe
from gendistill.methods.feature_adversary import AdversarialRecipe
from gendistill.methods.fine_tuning import FineTuningRecipe
from gendistill.methods.gan_build import GanRecipe
from gendistill.methods.latent_alignment import AlignmentRecipe
from gendistill.methods.matching_features import FeatureMatchingRecipe
from gendistill.methods.method_registry import RECIPES, compresses, recipe_of, register
from gendistill.methods.progressive import ProgressiveRecipe
from gendistill.methods.recipe import Recipe, RunConfig, Stage, StageOutline
from gendistill.methods.sequence import SequenceRecipe

COMPRESSION = CompressionRecipe()
for _recipe in (
    ConsistencyRecipe(),
    ProgressiveRecipe(),
    AlignmentRecipe(),
    DistributionMatchingRecipe(),
    AdversarialRecipe(),
    FeatureMatchingRecipe(),
    FineTuningRecipe(),
    SequenceRecipe(),
    COMPRESSION,
    DecoderRecipe(),
    GanRecipe(),
):
    register(_recipe)

__all__ = ["RECIPES", "Recipe", "RunConfig", "Stage", "StageOutline", "denoiser_stages", "outline_of", "recipe_of", "register"]


def denoiser_stages(context: DenoiserContext) -> Iterator[Stage]:
    """All stages of a denoiser's run: compression of the network where requested, then the stages of its method.

    Each stage starts from the result of the one before, which must be trained before the next stage is requested.
    """
    for stage in _stages(context):
        if context.config.quantization == "int8" and isinstance(stage.method, DenoiserMethod):
            compute_as_int8(stage.method.networks.student.network)
            compute_as_int8(stage.method.networks.average.network)
        yield stage


def _stages(context: DenoiserContext) -> Iterator[Stage]:
    recipe = recipe_of(context.config)
    if compresses(context.config) and recipe is not COMPRESSION:
        first = COMPRESSION.first_stage(context)
        yield first
        assert isinstance(first.method, DenoiserMethod)
        context = replace(context, start=first.method.networks.average)
    yield from recipe.stages(context)


def outline_of(config: RunConfig) -> list[StageOutline]:
    """The outlines of all stages from the settings alone, for any method."""
    recipe = recipe_of(config)
    outlines = recipe.outline(config)
    if not compresses(config) or recipe is COMPRESSION:
        return outlines
    named = [replace(outline, name=outline.name or recipe.name) for outline in outlines]
    return [first_outline(config), *named]
