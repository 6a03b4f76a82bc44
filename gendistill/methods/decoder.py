"""Decoder distillation: a tiny autoencoder that shares the latent space of a large one.

The decoder is trained to reconstruct the image from the teacher's latents, the encoder to predict these latents from the image.
Their losses are independent, each in the teacher's latent space, so each half is compatible with the other half of the teacher,
and with all models of that space: denoisers, LoRAs, ControlNets. TAESD (Bohan 2023) is such a pair for Stable Diffusion.
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
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.codec import LatentCodec
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.schedule import Weight, weight_at
from gendistill.settings.section import Section
from gendistill.training.method import Method, Update


class DecoderConfig(Section):
    """Decoder distillation (`--method decoder`): a tiny autoencoder in the teacher's latent space."""

    formerly_valued: ClassVar[dict[str, dict[str, str]]] = {"target": {"pictures": "images"}}
    width: int = Field(64, ge=4, description="Channels of every layer", json_schema_extra=about("channels"))
    blocks: int | list[int] = Field(
        3,
        description="Blocks of each resolution except the finest, which has one, or a list, the coarsest resolution first; 3 "
        "with a width of 64 is the architecture of TAESD",
        json_schema_extra=about("blocks"),
    )
    start: str | None = Field(
        None,
        description="Tiny autoencoder that training starts from, which sets width and blocks: the student of another run, or a "
        "folder or hub id of an AutoencoderTiny in the teacher's latent space, such as madebyollin/taesd",
        json_schema_extra=about(path=True),
    )
    copies: int = Field(
        1,
        ge=1,
        description="Copies of each training image: the image itself, and others with random flips, shifts and colours",
        json_schema_extra=about("images"),
    )
    target: Literal["images", "decoded"] = Field(
        "images", description="Target of the decoder: the training images, or the teacher's decoded latents"
    )
    l1: Weight = Field(1.0, description="Weight of the absolute error of the decoded image")
    l2: Weight = Field(1.0, description="Weight of the squared error of the decoded image")
    patches: Weight = Field(
        0.0,
        description="Weight of the sliced Wasserstein distance between patches, which sharpens images at some cost in PSNR",
        json_schema_extra=about(paper=papers.PATCHES, at="section 3.2"),
    )
    encoder: Weight = Field(
        1.0, description="Weight of the encoder's squared error of latents; the encoder is trained where it is above 0"
    )
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="Decay per step of the moving average, which is exported as the student"
    )


PATCH, PROJECTIONS = 5, 8  # edge of a patch in pixels; number of random projections


class DecoderDistillation(Method):
    """Training of decoder and encoder on the same batch, with a loss for each."""

    name = "decoder"
    networks: TinyNetworks

    def __init__(self, networks: TinyNetworks, config: DecoderConfig) -> None:
        self.networks, self.config = networks, config
        networks.decay = config.ema_decay
        self._parameters = {
            half: {
                name.removeprefix(f"{half}."): parameter
                for name, parameter in networks.trained.items()
                if name.startswith(f"{half}.")
            }
            for half in ("decoder", "encoder")
        }

    def trained_modules(self) -> dict[str, nn.Module]:
        return {"decoder": self.networks.decoder, "encoder": self.networks.encoder}

    def replace_modules(self, wrapped: dict[str, nn.Module]) -> None:
        self.networks.decoder, self.networks.encoder = wrapped["decoder"], wrapped["encoder"]

    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        return self._parameters

    def updates(self, batch: DecodedBatch, step: int, random: PerSampleRandom) -> Iterator[Update]:
        terms = list(self._decoder_terms(batch, step))
        loss = sum((weight * term for _, weight, term in terms), batch.latents.new_zeros(()))
        yield Update(loss, ("decoder",), {name: term.detach() for name, _, term in [("loss", 1.0, loss), *terms]})
        if weight := weight_at(self.config.encoder, step):
            latent_error = l2(self.networks.encoder(batch.images), batch.latents)
            yield Update(weight * latent_error, ("encoder",), {"latents": latent_error.detach()})

    def _decoder_terms(self, batch: DecodedBatch, step: int) -> Iterator[tuple[str, float, Tensor]]:
        """Name, weight and value (0-d) of each loss term of the decoder in this step."""
        config, reconstruction = self.config, self.networks.decoder(batch.latents)
        target = batch.images if config.target == "images" else batch.decoded
        for name, loss in (("l1", l1), ("l2", l2)):
            if weight := weight_at(getattr(config, name), step):
                yield name, weight, loss(reconstruction, target)
        if weight := weight_at(config.patches, step):
            generator = torch.Generator().manual_seed(step)  # the same on every process
            projections = to_device(patch_projections(PROJECTIONS, target.shape[1], PATCH, generator), target.device)
            yield "patches", weight, patch_sliced_wasserstein(reconstruction, target, projections)


@dataclass(frozen=True)
class AutoencoderContext:
    """The inputs of the stages of an autoencoder's method: the settings of the run, and the teacher's codec."""

    config: RunConfig
    codec: LatentCodec


class DecoderRecipe(Recipe):
    """One stage: decoder and encoder of a tiny autoencoder."""

    name = section = "decoder"
    Config = DecoderConfig
    summary = "A tiny autoencoder in the teacher's latent space, which decodes images faster"
    teaches = "autoencoder"
    student = "a tiny autoencoder"
    supports = Supports(lora=False, compression=False, full_weights=False, planning=False)
    size_settings = "decoder.width and decoder.blocks"

    def check(self, config: RunConfig, teacher: Any = None) -> None:
        super().check(config, teacher)
        if teacher is not None and not isinstance(teacher.codec, LatentCodec):
            raise ValueError(f"teacher {config.teacher}: generates pixels and has no decoder; expects a latent diffusion model")
        if teacher is not None and (kind := type(teacher.codec.vae).__name__) != "AutoencoderKL":
            raise ValueError(f"teacher {config.teacher}: its vae is an {kind}; --method decoder expects an AutoencoderKL")

    def data_needs(self, config: RunConfig) -> Literal["decoded"]:
        return "decoded"

    def stages(self, context: AutoencoderContext) -> Iterator[Stage]:
        config, codec = context.config, context.codec
        settings: DecoderConfig = config.decoder
        if settings.start is not None:
            tiny = started_autoencoder(settings.start, codec.vae)
        else:
            tiny = tiny_autoencoder(codec.vae, settings.width, settings.blocks)
        method = DecoderDistillation(tiny_networks(codec, tiny), settings)
        yield Stage(method, config.trainer)
