"""Memory of sampling for each placement, predicted from a model's configs without loading it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gendistill.samplers.codec import LatentCodec
from gendistill.samplers.families import Family, family_of
from gendistill.samplers.offload.live_memory import bytes_of, peak_bytes
from gendistill.samplers.offload.meta_pipeline import meta_network_like, meta_pipeline
from gendistill.samplers.quantization.small_weights import quantize_weights, weight_quantization

TILE = 512  # edge of a tile in pixels
LONGEST_PROMPT = 512  # tokens of a T5 or of a language model; CLIP's have 77
CUDA_CONTEXT = 600 * 2**20  # assumed size of the driver's context and the libraries' workspaces


@dataclass(frozen=True)
class Placement:
    """Which parts of a pipeline are offloaded while they are idle; `PLACEMENTS` lists the fastest first.

    Attributes:
        in_diffusers: the corresponding calls of diffusers.
        text_encoder_offload: the text encoders are offloaded once prompts are encoded.
        model_offload: every network is on the device only while it runs.
        sequential_offload: every layer is on the device only while it runs.
        tiled: the decoder processes tiles, one image at a time.
    """

    name: str
    in_diffusers: str
    text_encoder_offload: bool = False
    model_offload: bool = False
    sequential_offload: bool = False
    tiled: bool = False


PLACEMENTS = (
    Placement("all", "everything stays on the device"),
    Placement("text-encoder-offload", "pipe.text_encoder.to('cpu') once prompts are encoded", text_encoder_offload=True),
    Placement("tiled", "and pipe.vae.enable_tiling(), enable_slicing()", text_encoder_offload=True, tiled=True),
    Placement(
        "model-offload",
        "and pipe.enable_model_cpu_offload(): each network in turn",
        text_encoder_offload=True,
        model_offload=True,
        tiled=True,
    ),
    Placement("sequential-offload", "pipe.enable_sequential_cpu_offload(): each layer in turn", True, True, True, True),
)


@dataclass(frozen=True)
class Needs:
    """Bytes that a pipeline needs to sample a batch.

    Attributes:
        text, network, decoder: size of the weights; `largest_layer`: weights of the largest layer.
        encode, denoise, decode, decode_tiled: peak of the activations in each stage.
    """

    text: int
    network: int
    decoder: int
    largest_layer: int
    encode: int
    denoise: int
    decode: int
    decode_tiled: int

    def peak(self, placement: Placement) -> int:
        """Peak memory of sampling, over all stages."""
        decode = self.decode_tiled if placement.tiled else self.decode
        if placement.sequential_offload:
            return self.largest_layer + max(self.encode, self.denoise, decode)
        if placement.model_offload:
            return max(self.text + self.encode, self.network + self.denoise, self.decoder + decode)
        rest = self.network + self.decoder
        if placement.text_encoder_offload:
            return max(self.text + self.encode, rest + max(self.denoise, decode))
        return self.text + rest + max(self.encode, self.denoise, decode)


@dataclass(frozen=True)
class MetaNetworks:
    """The networks of a latent-space pipeline on the meta device, with shapes but without values.

    Attributes:
        text: text encoders.
        network: the denoiser.
        decoder: the VAE.
        scheduler: the pipeline's scheduler.
        size: default height and width of the images in pixels.
    """

    family: Family
    text: tuple[Any, ...]
    network: Any
    decoder: Any
    scheduler: Any
    size: tuple[int, int]

    @staticmethod
    def from_configs(model: str | Path, *, config: str | None = None) -> MetaNetworks:
        """Build the networks from the configs of a model; arguments as for `meta_pipeline`.

        Raises:
            ValueError: as `meta_pipeline`, or the model has no VAE.
        """
        pipeline = meta_pipeline(model, config=config)
        if getattr(pipeline, "vae", None) is None:
            raise ValueError(f"model {model}: expects a pipeline with a VAE")
        return _networks_of(pipeline)

    @staticmethod
    def like(pipeline: Any) -> MetaNetworks:
        """Copies of the networks of an opened pipeline, which is not changed, with the same weight quantization."""
        opened = _networks_of(pipeline)
        text, network = tuple(meta_network_like(encoder) for encoder in opened.text), meta_network_like(opened.network)
        if (kind := weight_quantization(opened.network)) is not None:
            quantize_weights(network, kind)
        return replace(opened, text=text, network=network, decoder=meta_network_like(opened.decoder))

    @property
    def factor(self) -> int:
        """Pixels along the edge of a latent."""
        return LatentCodec(self.decoder, patch=self.patch).factor

    @property
    def patch(self) -> int:
        """Edge of the patches of the VAE's latents that are one latent of the denoiser."""
        return math.isqrt(self.family.channels(self.network.config)[0] // self.decoder.config.latent_channels)

    def needs(self, size: tuple[int, int], batch: int, *, guided: bool, dtype: torch.dtype, cpu: bool) -> Needs:
        """Memory needs of sampling a batch of `batch` images of `size` (height, width).

        Args:
            guided: classifier-free guidance, which doubles the batch of the denoiser.
            cpu: count the copies of convolutions, which oneDNN makes on a CPU.
        """
        for module in (*self.text, self.network, self.decoder):
            module.to(dtype)
        if dtype is torch.float16 and _decodes_in_float32(self.network, self.decoder):
            self.decoder.float()
        latents = (size[0] // self.factor, size[1] // self.factor)
        tile = tuple(min(edge, TILE // self.factor) for edge in latents)
        channels, _ = self.family.channels(self.network.config)

        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        def peak_of(call: Any) -> int:
            with torch.no_grad():
                return peak_bytes(call, copies_of_convolutions=cpu)

        def decode(count: int, area: Sequence[int]) -> int:
            shape = (count, channels // self.patch**2, *(edge * self.patch for edge in area))
            return peak_of(lambda: self.decoder.decode(empty(*shape).to(self.decoder.dtype)))

        rows = batch * (2 if guided and self.family.guided else 1)
        config = self.network.config
        conditioning = self.family.example_conditioning(config, rows, dtype)
        x_t, t = empty(rows, channels, *latents), torch.empty(rows, device="meta")
        return Needs(
            text=bytes_of(self.text),
            network=bytes_of([self.network]),
            decoder=bytes_of([self.decoder]),
            largest_layer=max(_largest_layer(module) for module in (*self.text, self.network, self.decoder.decoder)),
            encode=self.encoding(rows),
            denoise=peak_of(lambda: self.family.call(self.network, x_t, t, conditioning)),
            decode=decode(batch, latents),
            decode_tiled=decode(1, tile) + batch * 3 * math.prod(size) * dtype.itemsize,
        )

    def encoding(self, rows: int) -> int:
        """Peak bytes of the activations while the text encoders encode `rows` prompts."""
        with torch.no_grad():
            return sum(peak_bytes(partial(_encode, text, rows)) for text in self.text)


def fastest_that_fits(needs: Needs, free: float) -> Placement | None:
    """The first of `PLACEMENTS` that fits into `free` bytes; None if none does."""
    return next((placement for placement in PLACEMENTS if needs.peak(placement) <= free), None)


def _decodes_in_float32(network: Any, decoder: Any) -> bool:
    """Whether the pipeline decodes in float32 in half precision: Stable Diffusion XL does if the VAE has `force_upcast`."""
    return network.config.get("addition_embed_type") == "text_time" and bool(decoder.config.get("force_upcast"))


def _networks_of(pipeline: Any) -> MetaNetworks:
    """The networks of a pipeline, on their devices."""
    family = family_of(pipeline)
    text, network = tuple(family.encoders(pipeline).values()), family.network(pipeline)
    return MetaNetworks(family, text, network, pipeline.vae, pipeline.scheduler, family.size(pipeline))


def _encode(text: Any, rows: int) -> None:
    text(_tokens(text, rows))


def _tokens(text: Any, rows: int) -> torch.Tensor:
    count = min(getattr(text.config, "max_position_embeddings", LONGEST_PROMPT), LONGEST_PROMPT)
    return torch.zeros(rows, count, dtype=torch.long, device="meta")


def _largest_layer(module: nn.Module) -> int:
    """Bytes of the parameters of the largest single layer."""
    sizes = (sum(p.numel() * p.element_size() for p in layer.parameters(recurse=False)) for layer in module.modules())
    return max(sizes, default=0)
