"""DiT: class-conditional transformers in latent space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiTPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from gendistill.samplers.codec import Codec, LatentCodec
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.families.family import Conditions, Family, SampleOptions


class DiT(Family):
    """DiT (Peebles & Xie 2023): a `DiTTransformer2DModel` with a class as its condition, in the latent space of a VAE.

    A prompt is a label of a class, or its number as text. One more class, the last, is the unconditional branch of guidance.
    Half of the output channels may be a learned variance, which the pipeline does not use. Diffusers loads no LoRA into it.
    """

    summary = "DiT: a class-conditional transformer in latent space"
    pipelines = ("DiTPipeline",)
    network_part = "transformer"
    default_guidance = 4.0
    guided = True
    task = "unconditional-image-generation"
    example = "pipeline(class_labels=[0], num_inference_steps={steps}, guidance_scale={scale:g})"

    def set_size(self, pipeline: Any, size: tuple[int, int]) -> None:
        """Raises ValueError: the pipeline's images have the network's size, which determines the positions in the network."""
        raise ValueError(f"a DiTPipeline samples images of one size only; expects {self.size(pipeline)[0]}")

    def encode(self, pipeline: Any, prompts: list[str]) -> Conditions:
        classes, known = self.network(pipeline).config.num_embeds_ada_norm, pipeline.labels
        for prompt in prompts:
            if prompt not in known and not (prompt.isdecimal() and int(prompt) < classes):
                labels = f"a label, such as {next(iter(known))!r}, or " if known else ""
                raise ValueError(f"prompt {prompt!r}: the model expects {labels}the number of a class, from 0 to {classes - 1}")
        numbers = [known.get(prompt, prompt) for prompt in prompts]
        return {"class_labels": torch.tensor([int(number) for number in numbers], device=self.device(pipeline))}

    def unconditional(self, pipeline: Any) -> Conditions:
        last = self.network(pipeline).config.num_embeds_ada_norm
        return {"class_labels": torch.tensor([last], device=self.device(pipeline))}

    def own_prompts(self, pipeline: Any) -> list[str] | None:
        """One prompt per class: its first label, or its number where the pipeline has no label for it."""
        first = {number: label for label, number in reversed(pipeline.labels.items())}
        return [first.get(number, str(number)) for number in range(self.network(pipeline).config.num_embeds_ada_norm)]

    def sample(self, pipeline: Any, conditions: Conditions, unconditional: Conditions, options: SampleOptions) -> Tensor:
        """The loop of the pipeline, which can return images only."""
        if options.arguments:
            raise ValueError(f"{', '.join(options.arguments)}: a DiTPipeline has no such argument")
        network, scheduler, codec, count = (
            self.network(pipeline),
            pipeline.scheduler,
            self.codec(pipeline),
            len(options.generators),
        )
        conditioning, guided = Conditioning(**conditions), options.guidance_scale > 1
        if guided:
            conditioning = Conditioning.cat([conditioning, Conditioning(**unconditional).expand(count)])
        shape = (count, *codec.latent_shape(self.size(pipeline)))
        x_t = randn_tensor(shape, options.generators, self.device(pipeline), network.dtype)
        scheduler.set_timesteps(options.num_inference_steps)
        for t in scheduler.timesteps:
            rows = scheduler.scale_model_input(torch.cat([x_t, x_t]) if guided else x_t, t)
            output = self.call(network, rows, t.to(x_t.device).expand(len(rows)), conditioning)
            if guided:
                of_class, of_none = output.chunk(2)
                output = of_none + options.guidance_scale * (of_class - of_none)
            x_t = scheduler.step(output, t, x_t, return_dict=False)[0]
        return x_t if options.latent else codec.decode(x_t) / 2 + 0.5

    def codec(self, pipeline: Any) -> Codec:
        return LatentCodec(pipeline.vae)

    def conditioning(self, encoded: Conditions, size: tuple[int, int] | None) -> Conditioning:
        return Conditioning(**encoded)

    def network_inputs(
        self, config: Mapping[str, Any], x_t: Tensor, t: Tensor, conditioning: Conditioning, dtype: torch.dtype
    ) -> dict[str, Any]:
        return {"hidden_states": x_t, "timestep": t, "class_labels": conditioning["class_labels"]}

    def example_conditioning(self, config: Mapping[str, Any], batch: int, dtype: torch.dtype) -> Conditioning:
        return Conditioning(class_labels=torch.empty(batch, dtype=torch.int64, device="meta"))

    def student_pipeline(self, pipeline: Any, parts: dict[str, Any]) -> Any:
        """A `DiTPipeline` with the labels of the classes, also in its `model_index.json`."""
        labels = pipeline.config.get("id2label")
        student: Any = DiTPipeline(**{**pipeline.components, **parts}, id2label=labels)
        student.register_to_config(id2label=labels)
        return student
