"""What sampling takes of memory, placement by placement, from the configs of a model alone: nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gendistill.samplers.families import Family, family_of
from gendistill.samplers.offload.live_memory import bytes_of, peak_bytes
from gendistill.samplers.offload.meta_pipeline import meta_network_like, meta_pipeline
from gendistill.samplers.quantization.small_weights import keep_weights_small, kind_of_weights

TILE = 512  # pixels along an edge
CUDA_CONTEXT = 600 * 2**20  # the driver's context and the libraries' workspaces; an assumption


@dataclass(frozen=True)
class Placement:
    """Where the parts of a pipeline are while they do not work, fastest first in `PLACEMENTS`.

    Attributes:
        text_encoder_offload: the text encoders give up their place once prompts are encoded.
        in_turn: every network has the place only while it works.
        by_layer: every layer has the place only while it works.
        tiled: the decoder works on tiles, and on one image at a time.
        told: how diffusers is asked for it.
    """

    name: str
    told: str
    text_encoder_offload: bool = False
    model_offload: bool = False
    sequential_offload: bool = False
    tiled: bool = False


PLACEMENTS = (
    Placement("all", "everything stays in place"),
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
        text, network, decoder: of weights; `largest_layer`: of the largest layer of all.
        encode, denoise, decode, decode_tiled: of what is computed meanwhile, at its peak.
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
        """At the worst moment of sampling."""
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
    """The networks of a latent pipeline on the meta device: shapes without numbers.

    Attributes:
        text: encoders of prompts.
        network: that is called in every step.
        decoder: the VAE.
        scheduler: the pipeline's own.
        size: height and width of the pipeline's images in pixels.
    """

    family: Family
    text: tuple[Any, ...]
    network: Any
    decoder: Any
    scheduler: Any
    size: tuple[int, int]

    @staticmethod
    def of(model: str | Path, *, config: str | None = None) -> MetaNetworks:
        """From the configs of a model; arguments as for `meta_pipeline`.

        Raises:
            ValueError: as `meta_pipeline`, or the model has no VAE.
        """
        pipeline = meta_pipeline(model, config=config)
        if getattr(pipeline, "vae", None) is None:
            raise ValueError(f"model {model}: expects a pipeline with a VAE")
        return _networks_of(pipeline)

    @staticmethod
    def like(pipeline: Any) -> MetaNetworks:
        """Copies of those of an opened pipeline, weights kept as they are there; those themselves stay where they are."""
        opened = _networks_of(pipeline)
        text, network = tuple(meta_network_like(encoder) for encoder in opened.text), meta_network_like(opened.network)
        if (kind := kind_of_weights(opened.network)) is not None:
            keep_weights_small(network, kind)
        return replace(opened, text=text, network=network, decoder=meta_network_like(opened.decoder))

    @property
    def factor(self) -> int:
        """Pixels along the edge of a latent."""
        return int(2 ** (len(self.decoder.config.block_out_channels) - 1))

    def needs(self, size: tuple[int, int], batch: int, *, guided: bool, dtype: torch.dtype, cpu: bool) -> Needs:
        """Of sampling `batch` images of `size` (height, width) together.

        Args:
            guided: classifier-free guidance, which doubles the batch of the network.
            cpu: count the copies that oneDNN makes for convolutions.
        """
        for module in (*self.text, self.network, self.decoder):
            module.to(dtype)
        if dtype is torch.float16 and _decodes_in_float32(self.network, self.decoder):
            self.decoder.float()
        latents = (size[0] // self.factor, size[1] // self.factor)
        tile = tuple(min(of, TILE // self.factor) for of in latents)
        channels, _ = self.family.channels(self.network.config)

        def made(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        def most(call: Any) -> int:
            with torch.no_grad():
                return peak_bytes(call, copies_of_convolutions=cpu)

        def decode(count: int, area: Sequence[int]) -> int:
            return most(lambda: self.decoder.decode(made(count, channels, *area).to(self.decoder.dtype)))

        rows = batch * (2 if guided else 1)
        return Needs(
            text=bytes_of(self.text),
            network=bytes_of([self.network]),
            decoder=bytes_of([self.decoder]),
            largest_layer=max(_layers(module) for module in (*self.text, self.network, self.decoder.decoder)),
            encode=sum(most(lambda text=text: text(_tokens(text, rows))) for text in self.text),
            denoise=most(lambda: self.network(**self.family.example_inputs(self.network.config, rows, latents, dtype))),
            decode=decode(batch, latents),
            decode_tiled=decode(1, tile) + batch * 3 * math.prod(size) * dtype.itemsize,
        )


def fastest_that_fits(needs: Needs, free: float) -> Placement | None:
    """The first of `PLACEMENTS` that stays within `free` bytes; None where none does."""
    return next((placement for placement in PLACEMENTS if needs.peak(placement) <= free), None)


def _decodes_in_float32(network: Any, decoder: Any) -> bool:
    """Whether its pipeline does so in half precision: that of Stable Diffusion XL does, where the VAE's config asks for it."""
    return network.config.get("addition_embed_type") == "text_time" and bool(decoder.config.get("force_upcast"))


def _networks_of(pipeline: Any) -> MetaNetworks:
    """Those of the pipeline themselves, wherever they are."""
    family = family_of(pipeline)
    text, network = tuple(family.encoders(pipeline).values()), family.network(pipeline)
    return MetaNetworks(family, text, network, pipeline.vae, pipeline.scheduler, family.size(pipeline))


def _tokens(text: Any, rows: int) -> torch.Tensor:
    return torch.zeros(rows, text.config.max_position_embeddings, dtype=torch.long, device="meta")


def _layers(module: nn.Module) -> int:
    """Bytes of the largest module that has weights of its own."""
    own = (sum(of.numel() * of.element_size() for of in part.parameters(recurse=False)) for part in module.modules())
    return max(own, default=0)
