"""The losses that a run adds to the loss of its method, by their weights."""

from __future__ import annotations

from collections.abc import Sequence

from gendistill.diffusion.trained_networks import Networks
from gendistill.methods.alignment import alignment_of
from gendistill.methods.denoiser_method import AuxiliaryLoss, DenoiserContext
from gendistill.methods.matching_features import feature_matching_of


def auxiliary_losses(context: DenoiserContext, networks: Networks, steps: Sequence[int]) -> list[AuxiliaryLoss]:
    """Alignment with the teacher's trajectories (`align.weight`), and feature matching (`feature_matching.weight`)."""
    config = context.config
    losses: list[AuxiliaryLoss] = [alignment_of(context, networks, steps)] if config.align.weight != 0 else []
    return [*losses, *(feature_matching_of(context, networks, steps) if config.feature_matching.weight != 0 else [])]
