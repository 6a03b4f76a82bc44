"""Sampling from a diffusers pipeline with a student's settings; images do not depend on the batch size."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gendistill.metrics.cost.components import Component
from gendistill.samplers.advice import advice
from gendistill.samplers.families import SampleOptions, family_of, network_of
from gendistill.samplers.known_students import KNOWN, known_by_config, known_by_name
from gendistill.samplers.loading import open_student
from gendistill.samplers.prompt_cache import PromptCache
from gendistill.samplers.provenance import pipeline_provenance, provenance
from gendistill.samplers.quantization.int8 import is_int8
from gendistill.samplers.quantization.quantize import quantization_in, quantization_of, quantize, require_quantization
from gendistill.samplers.sampler import NETWORK, Sampler, SampleRequest, hash_of_weights
from gendistill.samplers.scheduler_of import noise_from
from gendistill.samplers.spec import StudentSpec
from gendistill.samplers.tasks import TEXT_TO_IMAGE, Task, grid_arguments
from gendistill.samplers.weighted_lora import WeightedLora
from gendistill.schedulers import sigma_data_of

TEACHER_STEPS = 50


class FewStepSampler(Sampler):
    """Samples from a diffusers pipeline of any supported family, a student of gendistill or any other model.

    Image k depends only on its own seed and prompt, not on its batch. Each distinct prompt is encoded once and cached, up to
    256 MiB. The family defines what a prompt is: a text, the number of a class, or any string for an unconditional model.

    Args:
        pipeline: a loaded diffusers pipeline.
        spec: the student's sampling settings; None for other pipelines.
        eta: fraction of fresh noise in a step, for schedulers that support it; None: the spec's.
        size: default height and width of the images; None: the spec's or the pipeline's.
        encoded: the conditions of prompts, for a pipeline without text encoders.
    """

    def __init__(
        self,
        pipeline: Any,
        spec: StudentSpec | None = None,
        eta: float | None = None,
        size: tuple[int, int] | None = None,
        encoded: PromptCache | None = None,
    ) -> None:
        self._size = size
        self.pipeline, self.spec, self.family = pipeline, spec, family_of(pipeline)
        self.text_to_image = self.family.texts
        if self.text_to_image:  # a U-Net pads feature maps that it cannot halve
            self.size_multiple = 8 if self.family.network_part == "unet" else self.family.size_multiple(pipeline)
        self.eta = eta if eta is not None else spec.eta if spec else 0.0
        self._encoded = encoded or PromptCache(lambda prompts: self.family.encode(pipeline, list(prompts)))
        self._compiled = False
        pipeline.set_progress_bar_config(disable=True)

    @staticmethod
    def from_pretrained(
        folder: str | Path,
        *,
        config: str | None = None,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        quantization: str | None = None,
        loras: Sequence[WeightedLora] = (),
    ) -> FewStepSampler:
        """Open a student folder or LoRA, or any model that `open_pipeline` opens.

        Args:
            loras: are merged into the networks of a model other than a LoRA.
            quantization: quantization of the network, see `quantize`; None: `quantization_of` the student.

        Raises:
            ValueError: the model cannot be opened, or the quantization is unknown.
        """
        if quantization is not None:
            require_quantization(quantization, device)
        pipeline, spec = open_student(folder, config=config, revision=revision, dtype=dtype, loras=loras)
        kind = quantization_of(spec, device) if quantization is None else quantization
        quantize(pipeline, kind, device, lora=spec is not None and spec.lora)
        return FewStepSampler(pipeline.to(device), spec)

    def recognised(self, model: str | Path, like: str | None = None) -> FewStepSampler:
        """This sampler with the settings of a published few-step model, if it is one: LCM, Turbo, Lightning, Hyper-SD, DMD2.

        The scheduler of the model's own folder is kept if it is one for few steps.

        Args:
            model: the model's name, which may identify it.
            like: another name that identifies it, such as `dmd2-4step`.

        Raises:
            ValueError: `like` is unknown.
        """
        if like is not None and known_by_name(like) is None:
            names = ", ".join(kind.method for kind in KNOWN)
            raise ValueError(f"like {like}: expects the name of a file of one of {names}")
        if self.spec is not None and like is None:
            return self
        kind = known_by_name(like or model) or known_by_config(self.pipeline)
        if kind is None or not self.texts:
            return self
        own = self.pipeline.scheduler if like is None and kind.suits(self.pipeline.scheduler) else None
        spec = kind.spec(str(like or model), self.pipeline.scheduler.config, own)
        self.pipeline.scheduler = spec.scheduler()
        return FewStepSampler(self.pipeline, spec)

    def compile(self, backend: str = "inductor") -> None:
        """Compile the network by `torch.compile` in channels-last memory format; the first image of each size is slow.

        Batches are padded to 1, 2, 4, ... images, so that few sizes are compiled. On a CPU this needs a C++ compiler.

        Args:
            backend: backend of `torch.compile`.

        Raises:
            ValueError: the network computes in 8 bits on a CPU; torch cannot compile the packed weights.
        """
        network = network_of(self.pipeline)
        if is_int8(network):
            raise ValueError("--compile: expects no network in 8 bits on a CPU; expects --quantization none, or int8-weights")
        network.to(memory_format=torch.channels_last)
        network.compile(dynamic=False, backend=backend)
        self._compiled = True

    def advice(self, steps: int, guidance_scale: float | None = None) -> list[str]:
        scale = self.default_guidance_scale if guidance_scale is None else guidance_scale
        return [] if self.spec is None else list(advice(self.spec, self.pipeline, steps, scale))

    @property
    def kind(self) -> str:
        return type(self.pipeline).__name__

    @cached_property
    def quantization(self) -> str:
        """The quantization of the network, one of `QUANTIZATIONS`, at the first access."""
        return quantization_in(self.pipeline)

    @property
    def device(self) -> torch.device:
        return self.family.device(self.pipeline)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.pipeline.dtype
        return dtype

    @property
    def default_steps(self) -> int:
        return self.spec.num_inference_steps[0] if self.spec else TEACHER_STEPS

    @property
    def default_guidance_scale(self) -> float:
        if self.spec:
            return self.spec.pipeline_guidance_scale
        return self.family.default_guidance if self.family.has_guidance else 1.0

    @property
    def guided(self) -> bool:
        return self.spec.guidance != "baked" if self.spec else self.family.has_guidance

    def require_guidance(self, guidance_scale: float) -> None:
        if guidance_scale > 1 and not self.family.has_guidance:
            raise ValueError(f"guidance_scale {guidance_scale:g}: a {self.kind} knows no guidance; expects 1")

    def require_steps(self, steps: int) -> None:
        if steps > (max_steps := self.pipeline.scheduler.config.num_train_timesteps):
            raise ValueError(f"steps {steps}: expects at most {max_steps}, the model's timesteps")

    @property
    def solver(self) -> str:
        """The student's solver, or the name of the pipeline's present scheduler."""
        return self.spec.solver if self.spec else type(self.pipeline.scheduler).__name__.removesuffix("Scheduler")

    @property
    def method(self) -> str | None:
        return self.spec.method if self.spec else None

    def network_calls(self, steps: int, guidance_scale: float) -> int:
        return self.spec.network_calls(steps) if self.spec else steps * (2 if self.family.guided and guidance_scale > 1 else 1)

    @property
    def size(self) -> tuple[int, int]:
        return (self.spec.size if self.spec else None) or self._size or self.family.size(self.pipeline)

    @cached_property
    def weights_hash(self) -> str:
        """16 hex digits of the SHA-256 of all weights, including adapters, at the first access."""
        return hash_of_weights({name: part for name, part in self.pipeline.components.items() if isinstance(part, nn.Module)})

    @cached_property
    def _parts(self) -> dict[str, Any]:
        return pipeline_provenance(self.pipeline, ("scheduler",))

    def described(self, steps: int, guidance_scale: float) -> dict[str, Any]:
        return {
            "parts": self._parts,
            "scheduler": provenance(self.pipeline.scheduler),
            "steps": steps,
            "guidance_scale": guidance_scale,
            "eta": self.eta,
            "timesteps": self.spec.timesteps if self.spec else None,
            "size": list(self.size),
        }

    def components(self) -> dict[str, Component]:
        return components_of(self.pipeline)

    def setting(self, steps: int, guidance_scale: float) -> dict[str, str | int | float]:
        quantized = {} if self.quantization == "none" else {"quantization": self.quantization}
        return {
            "pipeline": self.kind,
            **quantized,
            "scheduler": type(self.pipeline.scheduler).__name__,
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "resolution": self.resolution,
            "text": "every prompt is encoded anew" if self.texts else "no text",
        }

    def cold(self) -> FewStepSampler:
        """A sampler of the same pipeline with an empty prompt cache."""
        return FewStepSampler(self.pipeline, self.spec, self.eta, self._size)

    @property
    def own_prompts(self) -> list[str] | None:
        return self.family.own_prompts(self.pipeline)

    @property
    def texts(self) -> bool:
        return self.family.texts

    def distinguishes(self, a: Sequence[str], b: Sequence[str]) -> bool:
        """Whether the model's tokenizers give different tokens."""
        parts = self.pipeline.components.items()
        tokenizers = [part for name, part in parts if name.startswith("tokenizer") and part is not None]
        return any(tokenizer(list(a)).input_ids != tokenizer(list(b)).input_ids for tokenizer in tokenizers)

    def latents(self, prompts: Sequence[str], seeds: Sequence[int], **arguments: Any) -> Iterator[Tensor]:
        """Batches of latents (B, C, h, w), scaled as the network's inputs; arguments as for `images`."""
        return self.images(prompts, seeds, latent=True, **arguments)

    @torch.no_grad()
    def _batches(self, request: SampleRequest) -> Iterator[Tensor]:
        prompts, seeds, task, steps = request.prompts, request.seeds, request.task, request.num_inference_steps
        count, guided = len(prompts), self.family.guided and request.guidance_scale > 1
        batch_size = request.batch_size if task.styles is None else 1
        pipeline = self._pipeline_of(task, count, steps)
        arguments = grid_arguments(pipeline, self.pipeline, steps)
        size = request.size or self.size
        has_size = True
        if task.images is not None:
            size = (task.images.shape[2], task.images.shape[3])
            has_size = "height" in inspect.signature(pipeline.__call__).parameters  # otherwise that of the images
        if has_size and size != self.family.size(self.pipeline):
            arguments |= {"height": size[0], "width": size[1]}
        if self.spec is not None and self.spec.timesteps is not None and steps in self.spec.timesteps:
            arguments["timesteps"] = self.spec.timesteps[steps]
        if self._compiled and task is TEXT_TO_IMAGE and count % batch_size:
            padding = min(batch_size, 2 ** (count % batch_size - 1).bit_length()) - count % batch_size
            prompts, seeds = [*prompts, *prompts[-1:] * padding], [*seeds, *seeds[-1:] * padding]

        def generate(rows: slice) -> Tensor:
            if guided and self._encoded.unconditional is None:
                self._encoded.unconditional = self.family.unconditional(self.pipeline)
            conditions = self._encoded.conditions(prompts[rows], self.device)
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[rows]]
            all_arguments = {**arguments, **task.arguments(rows, pipeline)}
            options = SampleOptions(steps, request.guidance_scale, generators, self.eta, request.latent, all_arguments)
            with noise_from(pipeline.scheduler, generators):
                sampled = self.family.sample(pipeline, conditions, self._encoded.unconditional or {}, options)
            return sampled / sigma_data_of(pipeline.scheduler) if request.latent else sampled

        for start in range(0, len(prompts), batch_size):
            rows = slice(start, min(start + batch_size, len(prompts)))
            yield self._generated(generate, rows, size, guided)[: count - start]

    def _generated(self, generate: Callable[[slice], Tensor], rows: slice, size: tuple[int, int], guided: bool) -> Tensor:
        """The batch of the prompts in `rows`, at a size (height, width)."""
        return generate(rows)

    def _not_finite(self, request: SampleRequest) -> str:
        """The error message, which names the first part whose output is not finite; it samples the latents again."""
        dtype = str(self.pipeline.dtype).removeprefix("torch.")
        conditions = self._encoded.conditions(request.prompts, torch.device("cpu"))
        vae = getattr(self.pipeline, self.family.decoder_part, None)
        if any(not value.isfinite().all() for value in conditions.values() if value.is_floating_point()):
            part = " or ".join(self.family.prompt_encoders)
        elif vae is None or request.latent or any(not x.isfinite().all() for x in self._batches(replace(request, latent=True))):
            part = self.family.network_part
        else:
            part = self.family.decoder_part
        advice = "a model whose parts belong together, or other steps and guidance_scale"
        if dtype == "float16":
            advice = "--dtype bfloat16 or float32, as values above 65504 overflow in float16"
        return f"the output of the model's {part} has values that are not finite in {dtype}; expects {advice}"

    def _pipeline_of(self, task: Task, count: int, steps: int) -> Any:
        if task is TEXT_TO_IMAGE:
            return self.pipeline
        task.require(count, steps)
        return task.pipeline(self.pipeline)


def components_of(pipeline: Any) -> dict[str, Component]:
    """The networks of a pipeline: its text encoders, the denoiser, which is called in every step, and the decoder.

    The decoder is the VAE, called by `decode`; its parameters include the VAE's encoder, which is loaded too.

    Raises:
        ValueError: the pipeline belongs to no known family.
    """
    family = family_of(pipeline)
    parts = {name: Component(encoder) for name, encoder in family.encoders(pipeline).items()}
    parts[NETWORK] = Component(family.network(pipeline))
    if isinstance(vae := getattr(pipeline, family.decoder_part, None), nn.Module):
        parts["decoder"] = Component(vae, "decode")
    return parts
