"""Distillation methods, each a function from a config and a teacher to the stages that are trained one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gendistill.config import DistillConfig
from gendistill.diffusion.conditioning import Conditioning
from gendistill.diffusion.denoiser import Denoiser
from gendistill.methods.consistency import consistency_stages
from gendistill.methods.latent_alignment import alignment_stages
from gendistill.methods.progressive import progressive_stages
from gendistill.methods.stage import Stage

Stages = Callable[[DistillConfig, Denoiser, Conditioning], Iterator[Stage]]

METHODS: dict[str, Stages] = {
    "consistency": consistency_stages,
    "progressive": progressive_stages,
    "latent_alignment": alignment_stages,
}
