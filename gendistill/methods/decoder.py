"""Decoder distillation: a tiny autoencoder that shares the latent space of a large one.

Its decoder learns to make the picture of the teacher's latents, its encoder to make these latents of the picture. The two are
trained apart, each against the teacher's own space, so that either fits with either half of the teacher, and with all that
was made for that space: denoisers, LoRAs, ControlNets. TAESD (Bohan 2023) is such a pair for Stable Diffusion.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gendistill.data.decoded import DecodedBatch
from gendistill.diffusion.settings import DecoderConfig
from gendistill.diffusion.tiny_autoencoder import TinyNetworks
from gendistill.losses.distributions import patch_projections, patch_sliced_wasserstein
from gendistill.losses.pixel import l1, l2
from gendistill.runtime.random import PerSampleRandom
from gendistill.settings.schedule import weight_at
from gendistill.training.method import Method, Update

PATCH, LINES = 5, 8  # pixels of an edge; directions


class DecoderDistillation(Method):
    """Two networks that learn from the same batch, each by a loss of its own."""

    name = "decoder"
    networks: TinyNetworks

    def __init__(self, networks: TinyNetworks, config: DecoderConfig) -> None:
        self.networks, self.config = networks, config
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

    def updates(self, batch: DecodedBatch, random: PerSampleRandom) -> Iterator[Update]:
        terms = list(self._of_decoder(batch, random.step))
        loss = sum((weight * term for _, weight, term in terms), batch.latents.new_zeros(()))
        yield Update(loss, "decoder", {name: term.detach() for name, _, term in [("loss", 1.0, loss), *terms]})
        if weight := weight_at(self.config.encoder, random.step):
            latents = l2(self.networks.encoder(batch.pictures), batch.latents)
            yield Update(weight * latents, "encoder", {"latents": latents.detach()})

    def after_step(self, step: int) -> None:
        self.networks.update_average(min(self.config.ema_decay, (1 + step) / (10 + step)))

    def _of_decoder(self, batch: DecodedBatch, step: int) -> Iterator[tuple[str, float, Tensor]]:
        """Name, weight and loss of each term that counts in this step."""
        config, made = self.config, self.networks.decoder(batch.latents)
        target = batch.pictures if config.target == "pictures" else batch.decoded
        for name, loss in (("l1", l1), ("l2", l2)):
            if weight := weight_at(getattr(config, name), step):
                yield name, weight, loss(made, target)
        if weight := weight_at(config.patches, step):
            lines = patch_projections(LINES, made.shape[1], PATCH, torch.Generator().manual_seed(step)).to(made.device)
            yield "patches", weight, patch_sliced_wasserstein(made, target, lines)
