"""Decoder distillation: a tiny autoencoder that shares the latent space of a large one.

Its decoder learns to make the image of the teacher's latents, its encoder to make these latents of the image. The two are
trained apart, each against the teacher's own space, so that either fits with either half of the teacher, and with all that
was made for that space: denoisers, LoRAs, ControlNets. TAESD (Bohan 2023) is such a pair for Stable Diffusion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gendistill.data.decoded import DecodedBatch
from gendistill.diffusion.tiny_autoencoder import TinyNetworks, started_autoencoder, tiny_autoencoder, tiny_networks
from gendistill.losses.distributions import patch_projections, patch_sliced_wasserstein
from gendistill.losses.pixel import l1, l2
from gendistill.methods.recipe import Recipe, RunConfig, Stage, Supports
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.codec import LatentCodec
from gendistill.settings.schedule import Weight, in_steps, weight_at
from gendistill.settings.section import Section
from gendistill.training.method import Method, Update


class DecoderConfig(Section):
    """Decoder distillation (`--method decoder`): a tiny autoencoder in the teacher's latent space."""

    formerly_valued: ClassVar[dict[str, dict[str, str]]] = {"target": {"pictures": "images"}}
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
        description="of each image: itself, and others that are flipped, moved and coloured at random; for small collections",
    )
    target: Literal["images", "decoded"] = Field(
        "images",
        description="what the decoder is to make: the images, or what the teacher's decoder makes of their latents",
    )
    l1: Weight = 1.0
    l2: Weight = 1.0
    patches: Weight = Field(0.0, description="sliced Wasserstein distance of an image's patches: sharp, for some PSNR")
    encoder: Weight = Field(1.0, description="of the encoder's squared error; it learns in the steps in which that is above 0")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="of the average, which is the student")


PATCH, LINES = 5, 8  # pixels of an edge; directions


class DecoderDistillation(Method):
    """Two networks that learn from the same batch, each by a loss of its own."""

    name = "decoder"
    networks: TinyNetworks

    def __init__(self, networks: TinyNetworks, config: DecoderConfig) -> None:
        self.networks, self.config = networks, config
        networks.decay = config.ema_decay
        self._parameters = {
            half: {name.removeprefix(f"{half}."): of for name, of in networks.trained.items() if name.startswith(f"{half}.")}
            for half in ("decoder", "encoder")
        }

    def trained_modules(self) -> dict[str, nn.Module]:
        return {"decoder": self.networks.decoder, "encoder": self.networks.encoder}

    def replace_modules(self, wrapped: dict[str, nn.Module]) -> None:
        self.networks.decoder, self.networks.encoder = wrapped["decoder"], wrapped["encoder"]

    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        return self._parameters

    def updates(self, batch: DecodedBatch, step: int, random: PerSampleRandom) -> Iterator[Update]:
        terms = list(self._of_decoder(batch, step))
        loss = sum((weight * term for _, weight, term in terms), batch.latents.new_zeros(()))
        yield Update(loss, ("decoder",), {name: term.detach() for name, _, term in [("loss", 1.0, loss), *terms]})
        if weight := weight_at(self.config.encoder, step):
            latents = l2(self.networks.encoder(batch.images), batch.latents)
            yield Update(weight * latents, ("encoder",), {"latents": latents.detach()})

    def _of_decoder(self, batch: DecodedBatch, step: int) -> Iterator[tuple[str, float, Tensor]]:
        """Name, weight and loss of each term that counts in this step."""
        config, made = self.config, self.networks.decoder(batch.latents)
        target = batch.images if config.target == "images" else batch.decoded
        for name, loss in (("l1", l1), ("l2", l2)):
            if weight := weight_at(getattr(config, name), step):
                yield name, weight, loss(made, target)
        if weight := weight_at(config.patches, step):
            lines = patch_projections(LINES, made.shape[1], PATCH, torch.Generator().manual_seed(step)).to(made.device)
            yield "patches", weight, patch_sliced_wasserstein(made, target, lines)


@dataclass(frozen=True)
class AutoencoderContext:
    """What the stages of an autoencoder's method are made of: the settings of the run, and the teacher's latent space."""

    config: RunConfig
    codec: LatentCodec


class DecoderRecipe(Recipe):
    """One stage: both halves of a tiny autoencoder."""

    name = section = "decoder"
    Config = DecoderConfig
    summary = "a tiny autoencoder in the teacher's latent space"
    teaches = "autoencoder"
    student = "a tiny autoencoder"
    supports = Supports(lora=False, compression=False, full_weights=False, planning=False)
    size_settings = "decoder.width and decoder.blocks"

    def check(self, config: RunConfig, teacher: Any = None) -> None:
        super().check(config, teacher)
        if teacher is not None and not isinstance(teacher.codec, LatentCodec):
            raise ValueError(f"teacher {config.teacher}: generates pixels, it has no decoder to distill")

    def data_needs(self, config: RunConfig) -> Literal["decoded"]:
        return "decoded"

    def stages(self, context: AutoencoderContext) -> Iterator[Stage]:
        config, codec = context.config, context.codec
        settings: DecoderConfig = config.decoder
        if settings.start is not None:
            tiny = started_autoencoder(settings.start, codec.vae)
        else:
            tiny = tiny_autoencoder(codec.vae, settings.width, settings.blocks)
        method = DecoderDistillation(tiny_networks(codec, tiny), in_steps(settings, config.trainer.max_steps))
        yield Stage(method, config.trainer)
