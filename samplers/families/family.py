"""What a family of diffusion pipelines is to the rest of the house: the one interface that a new family fills in.

A new family is one file beside this one with one subclass of `Family`, and one line in `FAMILIES` (or, from another package,
one call of `register`). Sampling, training, planning and export read everything from its members.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from gendistill.samplers.codec import Codec
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.precision import in_own_precision
from gendistill.schedulers import NoiseSchedule

Conditions = dict[str, Tensor]


@dataclass(frozen=True)
class SampleOptions:
    """How a batch is sampled, whatever the family.

    Attributes:
        generators: one a sample, for its noise.
        guidance_scale: of classifier-free guidance, or what a student with embedded guidance is told; 1 is none.
        eta: the share of fresh noise in a step, for pipelines that take one.
        latent: what diffusion works on is asked for, not images.
        arguments: further ones of the pipeline's call, by name: those of a task, a callback.
    """

    num_inference_steps: int
    guidance_scale: float
    generators: list[Generator]
    eta: float = 0.0
    latent: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Family(ABC):
    """One kind of diffusers pipeline. Its members hold no state; every one is a fact or a function of its arguments.

    Shapes: B samples of images (B, 3, H, W), which diffuse as (B, C, h, w).

    Attributes:
        pipelines: diffusers' names of the pipeline classes that belong to it; the first one is what a model card shows.
        network_part: the component that is distilled, by its name in the pipeline, in its `model_index.json` and in a LoRA
            file: `unet` or `transformer`.
        prompt_encoders: the components that encode prompts, by name; a pipeline may lack some of them.
        texts: whether prompts are texts; otherwise the family lists all its prompts by itself (`own_prompts`).
        guided: whether classifier-free guidance is known, and so `unconditional`.
        embeds_guidance: whether its networks may take the guidance scale as an input (`time_cond_proj_dim` in their config).
        bounded: whether it diffuses images, which lie in [-1, 1], rather than latents.
        accepts_eta: whether its pipelines are called with `eta`; the others leave it to the scheduler's own default.
        lora: whether diffusers loads a LoRA into its pipelines.
        lora_targets: names of the layers that a LoRA adapts, as PEFT's `target_modules`.
        cache_dtype: of encoded prompts on disk. float16 holds the states of CLIP; those of T5 leave its range.
        task: the hub's word for what it does, for the model card.
        example: how its pipelines are called, as code with {steps}, {scale} and {eta}, for the model card.
    """

    pipelines: tuple[str, ...]
    network_part = "unet"
    prompt_encoders: tuple[str, ...] = ()
    texts = guided = embeds_guidance = bounded = accepts_eta = lora = False
    lora_targets: tuple[str, ...] = ()
    cache_dtype = torch.float16
    task: str
    example: str

    # What a pipeline is

    def supports(self, pipeline: Any) -> bool:
        """Whether an opened pipeline belongs here; asked where two families share a pipeline class."""
        return type(pipeline).__name__ in self.pipelines

    def network(self, pipeline: Any) -> Any:
        """The network that is distilled."""
        return getattr(pipeline, self.network_part)

    def encoders(self, pipeline: Any) -> dict[str, Any]:
        """The networks that encode prompts, by name, as many as the pipeline has."""
        found = {name: getattr(pipeline, name, None) for name in self.prompt_encoders}
        return {name: network for name, network in found.items() if network is not None}

    def size(self, pipeline: Any) -> tuple[int, int]:
        """Height and width of its images in pixels, where nobody asks for another size."""
        size, factor = self.network(pipeline).config.sample_size, self.codec(pipeline).factor
        height, width = (size, size) if isinstance(size, int) else size
        return height * factor, width * factor

    def size_multiple(self, pipeline: Any) -> int:
        """What the edges of its images must be multiples of, in pixels: a U-Net halves its latents at every level but one."""
        config = self.network(pipeline).config
        halvings = len(config.get("block_out_channels", (1,))) - 1
        return int(self.codec(pipeline).factor * config.get("patch_size", 1) * 2**halvings)

    def device(self, pipeline: Any) -> torch.device:
        """Where its networks compute.

        Where none is offloaded it is where the weights are: diffusers looks at every module for it, which takes longer than to
        encode a prompt by a small model.
        """
        network = self.network(pipeline)
        parts = (network, *self.encoders(pipeline).values())
        if any(hasattr(part, hook) for part in parts for hook in ("_hf_hook", "_diffusers_hook")):
            return torch.device(pipeline._execution_device)
        return next(network.parameters()).device

    # Sampling: called by `FewStepSampler`

    @abstractmethod
    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        """Prompts (B) as tensors (B, ...), by the names under which the pipeline's own call takes them.

        Called once for each distinct prompt, before sampling and before training; the result is cached.

        Raises:
            ValueError: a prompt means nothing to the pipeline.
        """

    def unconditional(self, pipeline: Any) -> Conditions:
        """Tensors (1, ...) of the other branch of guidance, by the names of `encode`; none where there is no guidance."""
        return {}

    def own_prompts(self, pipeline: Any) -> list[str] | None:
        """All prompts that there are; None where any text is one."""
        return None

    @abstractmethod
    def sample(self, pipeline: Any, conditions: Conditions, unconditional: Conditions, options: SampleOptions) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], or what diffusion works on (B, C, h, w), as the options ask.

        Called once a batch. The pipeline's scheduler is the one to step with; sample k depends on its own condition and
        generator alone.

        Args:
            pipeline: of this family, or diffusers' pipeline for another task around the same parts.
            conditions: of B prompts, from `encode`.
            unconditional: from `unconditional`; used where the guidance scale is above 1.
        """

    # Training: called by `load_teacher` and by what it returns

    @abstractmethod
    def codec(self, pipeline: Any) -> Codec:
        """Between images (B, 3, H, W) in [-1, 1] and the space (B, C, h, w) that the pipeline diffuses in."""

    def noise_schedule(self, scheduler: Any) -> NoiseSchedule:
        """alpha(t) and sigma(t) of the noise that the network was trained on, from the pipeline's scheduler."""
        return NoiseSchedule.from_scheduler(scheduler)

    def prediction_type(self, scheduler: Any) -> str:
        """What the network predicts, one of `PREDICTION_TYPES`, from the pipeline's scheduler."""
        return str(scheduler.config.get("prediction_type", "epsilon"))

    @abstractmethod
    def conditioning(self, encoded: Conditions, size: tuple[int, int] | None) -> Conditioning:
        """The network's conditions (B, ...), from what `encode` or `unconditional` gave.

        Args:
            size: height and width of the images in pixels; without it the result says nothing of a size (so that it can be
                the other branch of guidance for images of any size, see `Conditioning.under`).
        """

    def channels(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """C of x_t and of what `call` returns, for a network of that config; both are those of the codec in a teacher."""
        return config["in_channels"], config["out_channels"]

    @abstractmethod
    def network_inputs(
        self, config: Mapping[str, Any], x_t: Tensor, t: Tensor, conditioning: Conditioning, dtype: torch.dtype
    ) -> dict[str, Any]:
        """The keyword arguments of the network at x_t (B, C, h, w) and t (B,), x_t first, floating conditions in `dtype`.

        Called at every evaluation, with real tensors or on the meta device. An argument that is not needed is left out.

        Args:
            config: the network's. It may have grown an input for the guidance scale, for a student with embedded guidance:
                `conditioning` then has a `guidance_scale`.
            dtype: of the network's weights; x_t is in it already.
        """

    def call(self, network: Any, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's raw output, of x_t's shape (B, C, h, w), in the dtype of its weights."""
        dtype = next(network.parameters()).dtype
        with in_own_precision(dtype, x_t.device.type):
            output: Tensor = network(**self.network_inputs(network.config, x_t.to(dtype), t, conditioning, dtype)).sample
        return output

    # Planning and export: called with a config alone, nothing is loaded

    @abstractmethod
    def example_conditioning(self, config: Mapping[str, Any], batch: int, dtype: torch.dtype) -> Conditioning:
        """Conditions of `batch` samples on the meta device, as a network of that config takes them."""

    def example_inputs(
        self, config: Mapping[str, Any], batch: int, size: tuple[int, int], dtype: torch.dtype
    ) -> dict[str, Any]:
        """The network's keyword arguments on the meta device.

        Args:
            size: height and width of what diffuses, (h, w).
        """
        x_t = torch.empty(batch, self.channels(config)[0], *size, dtype=dtype, device="meta")
        t = torch.empty(batch, device="meta")
        return self.network_inputs(config, x_t, t, self.example_conditioning(config, batch, dtype), dtype)

    @abstractmethod
    def student_pipeline(self, pipeline: Any, parts: dict[str, Any]) -> Any:
        """The stock diffusers pipeline that a student is used by: `parts` by component name, the others the teacher's own.

        Called with `{network_part: student}`, with another decoder, or with all parts in another dtype and a scheduler.
        """
