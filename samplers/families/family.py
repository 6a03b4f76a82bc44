"""The interface of a family of diffusion pipelines.

A new family is one file in this folder with one subclass of `Family`, and one line in `FAMILIES` (or, in another package, one
call of `register`). Sampling, training, planning and export use only its members.
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
from gendistill.samplers.layouts.layout import OriginalLayout
from gendistill.samplers.precision import in_own_precision
from gendistill.schedulers import NoiseSchedule, is_edm, is_flow

Conditions = dict[str, Tensor]


@dataclass(frozen=True)
class SampleOptions:
    """The sampling options of a batch, common to all families.

    Attributes:
        generators: the random generator of each sample's noise.
        guidance_scale: scale of classifier-free guidance, or input of a student with embedded guidance; 1 is no guidance.
        eta: fraction of fresh noise in a step, for pipelines that support it.
        latent: return latents instead of images.
        arguments: additional arguments of the pipeline's call, such as a task's or a callback.
    """

    num_inference_steps: int
    guidance_scale: float
    generators: list[Generator]
    eta: float = 0.0
    latent: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Family(ABC):
    """A family of diffusers pipelines. It has no state: each member is a constant or a function of its arguments.

    Shapes: images (B, 3, H, W) have latents (B, C, h, w), which are the images themselves in pixel space.

    Attributes:
        summary: one sentence without a full stop, for `gendistill families`.
        pipelines: diffusers' names of its pipeline classes; a model card shows the first.
        network_part: name of the denoiser in the pipeline, in its `model_index.json` and in a LoRA file: `unet` or
            `transformer`.
        decoder_part: name of the autoencoder in the pipeline, if it has one.
        prompt_encoders: names of the components that encode prompts.
        optional_encoders: those of them without which its pipelines also encode prompts.
        texts: whether prompts are texts; otherwise `own_prompts` lists all prompts.
        guided: whether classifier-free guidance is supported, and so `unconditional`.
        guidance_input: whether the guidance scale is an input of its teachers' networks, which need one call a step at any
            scale. Students keep that input, and `guided` is False.
        normalizes_guidance: whether its pipelines give guided outputs (B, C, h, w) the norm of the conditional ones in each row
            of w values (`cfg_normalization`).
        default_guidance: guidance scale of its pipelines' calls where none is given; with `guidance_input`, that of diffusers.
        embeds_guidance: whether the guidance scale can be added as an input to its students (`time_cond_proj_dim` in their
            config).
        rectangles: whether the default size of its pipelines may be no square; otherwise such a size is an argument of calls.
        pads: whether its networks pad feature maps with odd edges; otherwise `size_multiple` holds for every size.
        schedules: kinds of the noise schedules that its pipelines can sample with: `vp`, `flow`, `edm`.
        passes_sigmas: whether its pipelines pass the trailing sigmas to a flow-matching scheduler, instead of leaving the
            choice to it.
        stores_size: whether the config of its networks has the default size of its images; otherwise a call passes the size.
        bounded: whether it diffuses images in [-1, 1] instead of latents.
        solvers: solvers that its pipelines can sample students with.
        accepts_eta: whether its pipelines are called with `eta`; other pipelines use the scheduler's default.
        lora: whether diffusers can load a LoRA into its pipelines.
        lora_targets: names of the layers that a LoRA adapts, PEFT's `target_modules`.
        original_layout: the layout of its checkpoints in one file and of its LoRAs in kohya's format; None if there is none.
        call_arguments: additional arguments of every call of its pipelines.
        cache_dtype: dtype of encoded prompts on disk: float16 for the normalised states of CLIP's and T5's last layers, while
            inner states of language models exceed its range.
        task: the hub's task name, for the model card.
        example: example call of a pipeline, as code with {steps}, {scale} and {eta}, for the model card.
    """

    summary = ""
    pipelines: tuple[str, ...]
    network_part = "unet"
    decoder_part = "vae"
    prompt_encoders: tuple[str, ...] = ()
    optional_encoders: tuple[str, ...] = ()
    texts = guided = guidance_input = embeds_guidance = rectangles = bounded = accepts_eta = lora = passes_sigmas = False
    normalizes_guidance = False
    stores_size = True
    default_guidance = 7.5
    pads = True
    schedules: tuple[str, ...] = ("vp",)
    solvers: tuple[str, ...] = ("ddim", "lcm", "tcd", "stochastic")
    lora_targets: tuple[str, ...] = ()
    original_layout: OriginalLayout | None = None
    call_arguments: Mapping[str, Any] = {}
    cache_dtype = torch.float16
    task = "text-to-image"
    example = 'pipeline("a prompt", num_inference_steps={steps}, guidance_scale={scale:g}{eta})'

    @property
    def has_guidance(self) -> bool:
        """Whether its pipelines have a guidance scale, classifier-free or as an input."""
        return self.guided or self.guidance_input

    @property
    def neutral_guidance(self) -> float:
        """The `guidance_scale` of calls that add no guidance to the network's own: 1, or the default of an input."""
        return self.default_guidance if self.guidance_input else 1.0

    # Properties of a pipeline

    def supports(self, pipeline: Any) -> bool:
        """Whether an opened pipeline belongs to this family; families with the same pipeline class override it."""
        return type(pipeline).__name__ in self.pipelines

    def network(self, pipeline: Any) -> Any:
        """The denoiser, which is distilled."""
        return getattr(pipeline, self.network_part)

    def encoders(self, pipeline: Any) -> dict[str, Any]:
        """The pipeline's networks that encode prompts, by name."""
        encoders = {name: getattr(pipeline, name, None) for name in self.prompt_encoders}
        return {name: network for name, network in encoders.items() if network is not None}

    def refusal(self, pipeline: Any) -> str | None:
        """Why a pipeline of this family is no teacher, and what is expected, as the end of a sentence; None if it is one."""
        return None

    def size(self, pipeline: Any) -> tuple[int, int]:
        """Default height and width of its images in pixels."""
        size, factor = self.network(pipeline).config.sample_size, self.codec(pipeline).factor
        height, width = (size, size) if isinstance(size, int) else size
        return height * factor, width * factor

    def set_size(self, pipeline: Any, size: tuple[int, int]) -> None:
        """Make `size` (height, width) the default size of its images, also of the images of a pipeline with its network.

        A family whose pipelines have only squares as their default sizes leaves another size to the arguments of the call.

        Raises:
            ValueError: the network does not support the size; the message is the reason and what is expected.
        """
        if size[0] != size[1] and not self.rectangles:
            return
        height, width = (edge // self.codec(pipeline).factor for edge in size)
        sample_size = height if height == width else [height, width]
        self.network(pipeline).register_to_config(sample_size=sample_size)
        if hasattr(pipeline, "_is_unet_config_sample_size_int"):  # that of the network when the pipeline was built
            pipeline._is_unet_config_sample_size_int = height == width
        if hasattr(pipeline, "default_sample_size"):  # that of the network when the pipeline was built
            pipeline.default_sample_size = sample_size

    def only_square(self, pipeline: Any) -> bool:
        """Whether the stock pipeline of its students generates squares only."""
        return False

    def size_multiple(self, pipeline: Any) -> int:
        """The edges of images must be multiples of so many pixels, as a U-Net halves its latents at each level but one."""
        config = self.network(pipeline).config
        downsamplings = len(config.get("block_out_channels", (1,))) - 1
        return int(self.codec(pipeline).factor * config.get("patch_size", 1) * 2**downsamplings)

    def device(self, pipeline: Any) -> torch.device:
        """The device on which its networks compute.

        Without offloading it is the device of the weights. diffusers would check every module for it, which takes longer than
        to encode a prompt with a small model.
        """
        network = self.network(pipeline)
        parts = (network, *self.encoders(pipeline).values())
        if any(hasattr(part, hook) for part in parts for hook in ("_hf_hook", "_diffusers_hook")):
            return torch.device(pipeline._execution_device)
        return next(network.parameters()).device

    # Sampling: called by `FewStepSampler`

    @abstractmethod
    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        """Encode prompts (B) to tensors (B, ...), by the names of the arguments of the pipeline's call.

        This is called once for each distinct prompt, before sampling and before training; the result is cached.

        Raises:
            ValueError: the pipeline does not support a prompt.
        """

    def unconditional(self, pipeline: Any) -> Conditions:
        """Tensors (1, ...) of the unconditional branch of guidance, by the names of `encode`; none without guidance.

        By default they are those of an empty prompt.
        """
        return self.encode(pipeline, [""]) if self.guided else {}

    def own_prompts(self, pipeline: Any) -> list[str] | None:
        """All prompts of the model; None if any text is a prompt."""
        return None

    def sample(self, pipeline: Any, conditions: Conditions, unconditional: Conditions, options: SampleOptions) -> Tensor:
        """Sample images (B, 3, H, W) in [0, 1], or latents (B, C, h, w), depending on the options.

        This is called once per batch, and uses the pipeline's scheduler. Sample k depends only on its own condition and
        generator. By default it is one call of the pipeline.

        Args:
            pipeline: a pipeline of this family, or diffusers' pipeline for another task with the same parts.
            conditions: result of `encode` for B prompts.
            unconditional: result of `unconditional`; used if the guidance scale is above 1.
        """
        negative = {f"negative_{name}": t.expand(len(options.generators), *t.shape[1:]) for name, t in unconditional.items()}
        arguments = {**self.call_arguments, **({"eta": options.eta} if self.accepts_eta else {})}
        if not self.stores_size:
            arguments["height"], arguments["width"] = self.size(pipeline)
        output: Tensor = pipeline(
            **conditions,
            **(negative if options.guidance_scale > 1 else {}),
            num_inference_steps=options.num_inference_steps,
            guidance_scale=options.guidance_scale,
            generator=options.generators,
            output_type="latent" if options.latent else "pt",
            return_dict=False,
            **{**arguments, **options.arguments},
        )[0]
        return output

    # Training: called by `load_teacher` and by the teacher that it returns

    def prepare_teacher(self, pipeline: Any) -> None:  # noqa: B027
        """Change a pipeline that was opened to be distilled, where the schedulers of its students do not fit its network."""

    @abstractmethod
    def codec(self, pipeline: Any) -> Codec:
        """The codec between images (B, 3, H, W) in [-1, 1] and latents (B, C, h, w)."""

    def noise_schedule(self, scheduler: Any, config: Mapping[str, Any], size: tuple[int, int]) -> NoiseSchedule:
        """The noise schedule alpha(t), sigma(t) of the network's training, from the pipeline's scheduler.

        Args:
            config: the network's config.
            size: height and width of the latents, on which the shift of some flow-matching schedulers depends.
        """
        return NoiseSchedule.from_scheduler(scheduler, self.image_tokens(config, size))

    def image_tokens(self, config: Mapping[str, Any], size: tuple[int, int]) -> int:
        """Number of tokens of latents of `size` (h, w) in a network with that config."""
        patch = config.get("patch_size", 1)
        return size[0] // patch * (size[1] // patch)

    def schedule_of(self, pipeline: Any, size: tuple[int, int] | None = None) -> NoiseSchedule:
        """The noise schedule of a pipeline for images of `size` (height, width), by default those of its default size."""
        height, width = (edge // self.codec(pipeline).factor for edge in size or self.size(pipeline))
        return self.noise_schedule(pipeline.scheduler, self.network(pipeline).config, (height, width))

    def prediction_type(self, scheduler: Any) -> str:
        """The network's prediction type, one of `PREDICTION_TYPES`, from the pipeline's scheduler."""
        if is_edm(scheduler):
            return "v_prediction" if scheduler.config.prediction_type == "v_prediction" else "negative_v"
        named = str(scheduler.config.get("prediction_type", "flow" if is_flow(scheduler) else "epsilon"))
        return named.removesuffix("_prediction") if is_flow(scheduler) else named

    @abstractmethod
    def conditioning(self, encoded: Conditions, size: tuple[int, int] | None) -> Conditioning:
        """The network's conditions (B, ...), from the result of `encode` or `unconditional`.

        Args:
            size: height and width of the images in pixels; None leaves the size conditions out, so that the result can be the
                unconditional branch of guidance for images of any size (see `Conditioning.under`).
        """

    def channels(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """C of x_t and C of the network's output, with a learned variance, for a network with that config."""
        return config["in_channels"], config["out_channels"] or config["in_channels"]

    @abstractmethod
    def network_inputs(
        self, config: Mapping[str, Any], x_t: Tensor, t: Tensor, conditioning: Conditioning, dtype: torch.dtype
    ) -> dict[str, Any]:
        """The network's keyword arguments at x_t (B, C, h, w) and t (B,), x_t first, floating-point conditions in `dtype`.

        t is the network's own time (`NoiseSchedule.network_time`).

        This is called at every network evaluation, with real tensors or on the meta device. Unused arguments are left out.

        Args:
            config: the network's config. For a student with embedded guidance it has an input for the guidance scale, and
                `conditioning` has a `guidance_scale`.
            dtype: dtype of the network's weights and of x_t.
        """

    def call(self, network: Any, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's raw output, of x_t's shape (B, C, h, w), in the dtype of its weights, without a learned variance."""
        dtype = next(network.parameters()).dtype
        with in_own_precision(dtype, x_t.device.type):
            output: Tensor = network(**self.network_inputs(network.config, x_t.to(dtype), t, conditioning, dtype)).sample
        return output[:, : x_t.shape[1]]

    # Planning and export: called with a config only, without loading a network

    @abstractmethod
    def example_conditioning(self, config: Mapping[str, Any], batch: int, dtype: torch.dtype) -> Conditioning:
        """Conditions of `batch` samples on the meta device, for a network with that config."""

    def example_inputs(
        self, config: Mapping[str, Any], batch: int, size: tuple[int, int], dtype: torch.dtype
    ) -> dict[str, Any]:
        """The network's keyword arguments on the meta device.

        Args:
            size: height and width of the latents, (h, w).
        """
        x_t = torch.empty(batch, self.channels(config)[0], *size, dtype=dtype, device="meta")
        t = torch.empty(batch, device="meta")
        return self.network_inputs(config, x_t, t, self.example_conditioning(config, batch, dtype), dtype)

    def student_pipeline(self, pipeline: Any, parts: dict[str, Any]) -> Any:
        """The stock diffusers pipeline of a student: `parts` by component name, the other components are the teacher's.

        This is called with `{network_part: student}`, with another decoder, or with all parts in another dtype and a scheduler.
        """
        return type(pipeline)(**{**pipeline.components, **parts})
