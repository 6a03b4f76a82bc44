"""Small pictures of latents without a decoder: a straight line from the channels of a latent to the colours of its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gendistill.samplers.few_step import FewStepSampler


@dataclass(frozen=True)
class LatentPreview:
    """What a step has left, seen at once: a preview costs a thousandth of a decoding.

    Attributes:
        weight: (3, C); bias: (3,): colours in [0, 1] of a latent's channels, as the network sees them.
        share: of the variance of the colours, in pictures at the size of latents, that the line explains; at most 1.
    """

    weight: Tensor
    bias: Tensor
    share: float

    @staticmethod
    def fitted(latents: Tensor, pictures: Tensor) -> LatentPreview:
        """By least squares: latents (N, C, h, w) as the network sees them, and their pictures (N, 3, H, W) in [0, 1]."""
        small = F.interpolate(pictures.float(), latents.shape[2:], mode="area")
        given, wanted = (of.permute(0, 2, 3, 1).flatten(0, 2).double().cpu() for of in (latents, small))
        ones = torch.ones(len(given), 1, dtype=given.dtype)
        line = torch.linalg.lstsq(torch.cat([given, ones], 1), wanted).solution
        missed = (torch.cat([given, ones], 1) @ line - wanted).square().sum()
        share = 1 - float(missed / (wanted - wanted.mean(0)).square().sum())
        return LatentPreview(line[:-1].T.float(), line[-1].float(), share)

    @staticmethod
    def of(sampler: FewStepSampler, prompts: Sequence[str], seeds: Sequence[int] | None = None) -> LatentPreview:
        """Fitted to pictures that the sampler draws of some prompts; a handful is enough.

        Raises:
            ValueError: the model draws pixels, which need no preview.
        """
        if not hasattr(sampler.pipeline, "vae"):
            raise ValueError(f"preview: a {sampler.kind} draws pixels; takes a model of latents")
        seeds = range(len(prompts)) if seeds is None else seeds
        latents = torch.cat(list(sampler.latents(prompts, list(seeds))))
        return LatentPreview.fitted(latents, torch.cat(list(sampler.pictures(prompts, list(seeds)))))

    def __call__(self, latents: Tensor) -> Tensor:
        """Small pictures (B, 3, h, w) in [0, 1] of latents (B, C, h, w)."""
        weight, bias = self.weight.to(latents.device), self.bias.to(latents.device)
        return F.conv2d(latents.float(), weight[:, :, None, None], bias).clamp(0, 1)
