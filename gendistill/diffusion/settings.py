"""Settings of what diffusion students are told beside few steps: latents that fit, smaller networks, tiny decoders."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from gendistill.gan.gan_settings import FeatureConfig, RelationConfig
from gendistill.settings.schedule import Weight
from gendistill.settings.section import Section


class MatchConfig(Section):
    """How far the student's latents are from the teacher's of the same noise and prompt: weights, 0 is off."""

    pseudo_huber: Weight = 1.0
    l2: Weight = 0.0
    perceptual: Weight = Field(0.0, description="distance of the features of the teacher's own network, a little noise added")


class LatentDistributionConfig(Section):
    """How far they are as sets: weights, 0 is off."""

    patches: Weight = Field(0.0, description="sliced Wasserstein distance of the patches of each latents and its teacher's")
    real_patches: Weight = Field(
        0.0, description="of the patches of all latents and of as many of the data's, without their means"
    )
    sliced_wasserstein: Weight = Field(0.0, description="of whole latents")
    mmd: Weight = Field(0.0, description="of whole latents, with Gaussian kernels about the median distance")
    adversarial: Weight = Field(
        0.0, description="of a discriminator of latents, given the prompt or class, that learns beside the student (hinge)"
    )


class SemanticConfig(Section):
    """How near they are to each other, where prompts are: weights, 0 is off."""

    distance: Weight = Field(0.0, description="RKD, of pairs")
    angle: Weight = Field(0.0, description="RKD, of triplets")
    contrastive: Weight = Field(0.0, description="InfoNCE between the student's and the teacher's")
    clip: Weight = Field(0.0, description="1 - cosine of the CLIP embeddings of the decoded pictures of the two")


class AlignConfig(Section):
    """Latent-space alignment (`--method latent_alignment`), and the same beside another method's loss."""

    weight: Weight = Field(0.0, description="beside the loss of another method; 0 is off")
    trajectories: int = Field(1024, ge=1, description="that the teacher paints once, from noise to latents")
    trajectory_steps: int = Field(16, ge=1, description="of the teacher for each of them (DPM-Solver++)")
    teachers: dict[str, float | str] = Field(
        {},
        description="who paints them too: folders, each with its weight in an average (the teacher's own is 1), or with a "
        "pattern (regular expression) of the prompts that it paints by itself",
    )
    start_share: float = Field(0.25, ge=0, le=1, description="of samples that begin at the noise; others anywhere on the way")
    own_share: float = Field(0.0, ge=0, le=1, description="of steps that begin where the student itself comes to in few steps")
    match: MatchConfig = MatchConfig()
    distribution: LatentDistributionConfig = LatentDistributionConfig()
    semantic: SemanticConfig = SemanticConfig()
    clip: str = Field("assets/tiny-clip", description="of semantic.clip: a folder or MODEL/TAG of open_clip")
    ema_decay: float = Field(0.99, ge=0, lt=1, description="of the average, which is the student")
    generations: int = Field(
        1, ge=1, description="students one after another, each anew from the teacher; the ends of its ways are its parent's"
    )
    partner: Literal["none", "mutual"] = Field(
        "none", description="who else learns: a second student, from which the first learns too, and it from that"
    )
    partner_weight: Weight = Field(1.0, description="of the distance to what the partner paints (pseudo-Huber)")

    @field_validator("teachers")
    @classmethod
    def _weighs_or_matches(cls, teachers: dict[str, float | str]) -> dict[str, float | str]:
        for folder, of in teachers.items():
            if isinstance(of, str):
                try:
                    re.compile(of)
                except re.error as error:
                    raise ValueError(f"a regular expression for {folder}, and {of!r} is none ({error})") from error
            elif of <= 0:
                raise ValueError(f"a weight above 0 for {folder}, or a pattern of prompts as a text")
        return teachers


class DecoderConfig(Section):
    """Decoder distillation (`--method decoder`): a tiny autoencoder in the teacher's latent space."""

    width: int = Field(64, ge=4, description="channels of every layer")
    blocks: int | list[int] = Field(
        3,
        description="of each resolution but the finest, which has one; or a number for each, the coarsest first. 3 with a "
        "width of 64 is TAESD",
    )
    start: str | None = Field(
        None,
        description="a student of an earlier run, or any folder or hub id of an AutoencoderTiny in the teacher's latent space "
        "(madebyollin/taesd), whose weights, width and blocks it starts with",
    )
    copies: int = Field(
        1,
        ge=1,
        description="of each picture: itself, and others that are flipped, moved and coloured at random; for small collections",
    )
    target: Literal["pictures", "decoded"] = Field(
        "pictures",
        description="what the decoder is to make: the pictures, or what the teacher's decoder makes of their latents",
    )
    l1: Weight = 1.0
    l2: Weight = 1.0
    patches: Weight = Field(0.0, description="sliced Wasserstein distance of a picture's patches: sharp, for some PSNR")
    encoder: Weight = Field(1.0, description="of the encoder's squared error; it learns in the steps in which that is above 0")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="of the average, which is the student")


class CompressionConfig(Section):
    """A smaller denoiser (`--method compression`, or the first stage of another method with `--compress`)."""

    output: Weight = Field(1.0, description="squared error of what the network says, from what the guided teacher says")
    task: Weight = Field(0.0, description="squared error from the data themselves, as the teacher was trained")
    features: FeatureConfig = Field(FeatureConfig(), description="what the blocks say, in the teacher's scale")
    relations: RelationConfig = Field(
        RelationConfig(), description="of a batch's pictures, as the middle of the network has them"
    )
    ema_decay: float = Field(0.999, ge=0, lt=1, description="of the average, which is the student")
    steps: int = Field(20, ge=1, description="that the smaller network is validated in before another method makes them fewer")
    trainer: dict[str, Any] = Field(
        {}, description="settings of the trainer for this stage where another follows: {max_steps: 4000}"
    )
