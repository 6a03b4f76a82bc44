"""A teacher, opened from a folder, a hub id or a checkpoint: its denoiser, codec and prompt encoder."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gendistill.diffusion.denoiser import Denoiser
from gendistill.samplers.codec import Codec
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.families import Family, family_of
from gendistill.samplers.loading import commit_of, lists_safety_checker, open_pipeline
from gendistill.samplers.provenance import pipeline_provenance, provenance
from gendistill.samplers.quantization.small_weights import quantize_weights
from gendistill.samplers.weighted_lora import WeightedLora
from gendistill.schedulers import PREDICTION_TYPES
from gendistill.settings.image_size import written_size

logger = logging.getLogger(__name__)

MIN_SIGNAL = 1e-3  # smallest alpha of an epsilon teacher; Stable Diffusion ends at 0.07, DDPM's linear schedule at 0.006


@dataclass(frozen=True)
class PromptEncoder:
    """The parts of a pipeline that encode prompts."""

    family: Family
    pipeline: Any

    @torch.no_grad()
    def encode(self, prompts: list[str], size: tuple[int, int]) -> Conditioning:
        """Prompts (B), encoded for images of `size` (height, width).

        Raises:
            ValueError: the pipeline does not know a prompt.
        """
        return self.family.conditioning(self.family.encode(self.pipeline, prompts), size)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that determines the conditions of a prompt, as JSON values."""
        parts = pipeline_provenance(self.pipeline, (self.family.network_part, self.family.decoder_part, "scheduler"))
        return {"family": provenance(self.family), "prompts": self.family.own_prompts(self.pipeline), **parts}


@dataclass(frozen=True)
class Teacher:
    """A diffusion pipeline and its parts that training needs. Nothing in it is trained.

    Attributes:
        size: height and width of the training images in pixels.
        commit: commit of the download; None where the pipeline is not from the hub.
        not_in_student: what the teacher has and its student will not have, as sentences, for the log and the model card.
    """

    source: str
    family: Family
    pipeline: Any  # type checkers cannot see into diffusers' lazy modules
    denoiser: Denoiser
    codec: Codec
    size: tuple[int, int]
    commit: str | None = None
    not_in_student: tuple[str, ...] = ()

    @property
    def network(self) -> Any:
        return self.denoiser.network

    @property
    def own_prompts(self) -> list[str] | None:
        """The fixed list of prompts of the pipeline (class names, for example); None where it accepts any text."""
        return self.family.own_prompts(self.pipeline)

    @property
    def prompt_encoder(self) -> PromptEncoder:
        return PromptEncoder(self.family, self.pipeline)

    def encode_prompts(self, prompts: list[str], size: tuple[int, int] | None = None) -> Conditioning:
        """Prompts (B), encoded for images of `size` (height, width); None for the teacher's.

        Raises:
            ValueError: the pipeline does not know a prompt.
        """
        return self.prompt_encoder.encode(prompts, size or self.size)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that determines what the teacher generates from given noise and prompts, as JSON values."""
        return {
            "denoiser": provenance(self.denoiser),
            "codec": provenance(self.codec),
            "scheduler": provenance(self.pipeline.scheduler),
            "resolution": self.size[0] if self.size[0] == self.size[1] else self.size,
            "prompt_encoder": self.prompt_encoder.fingerprint(),
        }

    @torch.no_grad()
    def unconditional(self) -> Conditioning:
        """The unconditional branch of classifier-free guidance, a batch of 1, for images of any size.

        Empty for a family without guidance.
        """
        if not self.family.guided:
            return Conditioning()
        return self.family.conditioning(self.family.unconditional(self.pipeline), None)


def load_teacher(
    source: str | Path,
    *,
    config: str | None = None,
    revision: str | None = None,
    size: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    quantization: str = "none",
    loras: Sequence[WeightedLora] = (),
) -> Teacher:
    """Open a pipeline as a teacher.

    Args:
        source, config, revision: as for `open_pipeline`.
        size: height and width of the training images; None for the pipeline's own. It becomes the default size of the images of
            the pipeline and its students, see `Family.set_size`.
        quantization: quantization of the network's weights, before they are moved to the device: `none` or one of `KINDS`.
        loras: are merged into the networks, before the quantization.

    Raises:
        ValueError: the pipeline cannot be opened, its family is not supported, or its network cannot be distilled.
    """
    pipeline = open_pipeline(source, config=config, revision=revision, dtype=dtype, loras=loras)
    family_of(pipeline).prepare_teacher(pipeline)
    if quantization != "none":
        quantize_weights(family_of(pipeline).network(pipeline), quantization)
    return teacher_of(pipeline.to(device), source, size)


def teacher_of(pipeline: Any, source: str | Path, size: tuple[int, int] | None = None) -> Teacher:
    """An opened pipeline as a teacher; all its parameters are frozen.

    Raises:
        ValueError: as `load_teacher`; or the network does not support the size.
    """
    family = family_of(pipeline)
    if (reason := family.refusal(pipeline)) is not None:
        raise ValueError(f"model {source} is no teacher: {reason}")
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    codec, scheduler = family.codec(pipeline), pipeline.scheduler
    clips = family.bounded and scheduler.config.get("clip_sample")
    own_size = family.size(pipeline)
    size = size or own_size
    if size != own_size or not family.pads:
        _require_multiple(size, family.size_multiple(pipeline))
    if size[0] != size[1] and family.only_square(pipeline):
        kind, edges = type(pipeline).__name__, written_size(size)
        raise ValueError(f"data.resolution {edges}: a {kind} generates squares only; expects one edge, such as {size[0]}")
    if size != own_size:
        try:
            family.set_size(pipeline, size)
        except ValueError as error:
            raise ValueError(f"data.resolution {written_size(size)}: {error}") from error
    denoiser = Denoiser(
        family.network(pipeline),
        family.schedule_of(pipeline, size),
        family.prediction_type(scheduler),
        family.call,
        scheduler.config.get("clip_sample_range", 1.0) if clips else None,
        family.default_guidance if family.guidance_input else None,
        family.normalizes_guidance,
    )
    _require_distillable(source, denoiser, codec, family, type(scheduler).__name__)
    left_out = tuple(_not_in_student(pipeline, family))
    for sentence in left_out:
        logger.warning("teacher %s: %s", source, sentence)
    return Teacher(str(source), family, pipeline, denoiser, codec, size, commit_of(pipeline), left_out)


def _not_in_student(pipeline: Any, family: Family) -> Iterator[str]:
    config, arguments = pipeline.scheduler.config, inspect.signature(type(pipeline.scheduler)).parameters
    if lists_safety_checker(pipeline):
        yield "the student has no safety checker; its users can load the teacher's (subfolder safety_checker) into the pipeline"
    if "thresholding" in arguments and config.get("thresholding"):
        yield "the student is trained and sampled without the dynamic thresholding of the teacher's scheduler"
    if "clip_sample" in arguments and config.get("clip_sample") and not family.bounded:
        yield "the student is trained and sampled without the clipping of latents (clip_sample) by the teacher's scheduler"


def _require_multiple(size: tuple[int, int], multiple: int) -> None:
    """Raise ValueError where the network cannot halve images of `size` (height, width) at each of its levels."""
    if any(edge % multiple for edge in size):
        lower, upper = ([max(edge // multiple, 1) for edge in size], [-(-edge // multiple) for edge in size])
        nearest = dict.fromkeys(written_size((multiple * height, multiple * width)) for height, width in (lower, upper))
        edges = written_size(size)
        raise ValueError(f"data.resolution {edges}: expects a multiple of {multiple}, such as {' or '.join(nearest)}")


def _require_distillable(source: str | Path, denoiser: Denoiser, codec: Codec, family: Family, scheduler: str) -> None:
    """Raise ValueError for networks of a supported family with an unsupported option."""
    config, schedule = denoiser.network.config, denoiser.schedule
    channels = family.channels(config)
    if channels[0] != codec.channels or channels[1] not in (codec.channels, 2 * codec.channels):  # with a learned variance
        raise ValueError(
            f"model {source}: a network of {channels[0]} to {channels[1]} channels is not supported; "
            f"expects {codec.channels} to {codec.channels}"
        )
    if config.get("time_cond_proj_dim") is not None:
        raise ValueError(f"model {source} has the guidance scale as an input: it is a student already; expects a teacher")
    if denoiser.prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"model {source}: prediction_type {denoiser.prediction_type!r} is not known; expects {', '.join(PREDICTION_TYPES)}"
        )
    if schedule.kind not in family.schedules:
        raise ValueError(
            f"model {source}: its scheduler {scheduler} does not fit its network; expects one of the kind "
            + " or ".join(family.schedules)
        )
    last = float(schedule.alpha(schedule.num_train_timesteps - 1))
    if denoiser.prediction_type == "epsilon" and last < MIN_SIGNAL:
        raise ValueError(
            f"model {source} predicts the noise, but its schedule ends in pure noise (alpha {last:.1e}), where that does not "
            "determine the image; expects a teacher that predicts v or the image at zero terminal SNR"
        )
