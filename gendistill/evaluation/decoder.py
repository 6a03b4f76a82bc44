"""A tiny autoencoder beside the one that it learned from: fidelity, whether their halves fit together, and speed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gendistill.data.decoded import DecodedData
from gendistill.diffusion.codec import LatentCodec
from gendistill.diffusion.tiny_autoencoder import decoded_by, encoded_by
from gendistill.metrics.features import FeatureExtractor, extract, metric_name
from gendistill.metrics.fidelity import psnr
from gendistill.metrics.frechet import frechet_distance, gaussian_statistics
from gendistill.metrics.interleaved import SideBySide, time_side_by_side
from gendistill.samplers import pictures_at_once

TEACHER, TINY = "teacher", "tiny"
ROUND_TRIPS = (
    "teacher's encoder, teacher's decoder",
    "teacher's encoder, tiny decoder",
    "tiny encoder, teacher's decoder",
    "tiny encoder, tiny decoder",
)


@dataclass(frozen=True)
class DecoderFigures:
    """What a tiny autoencoder is worth.

    Attributes:
        psnr: dB, by the mean squared error over all pictures, of each way there and back (`ROUND_TRIPS`).
        of_teachers: dB, of the tiny decoder's pictures from the teacher's decoder's, of the same latents.
        distances: the Fréchet distance of what a decoder makes from the pictures, by decoder and metric.
        latents: root mean square distance of the tiny encoder's latents from the teacher's, which have about unit variance.
        times: both decoders side by side, by batch size.
        parameters: of both decoders.
    """

    pictures: int
    psnr: dict[str, float]
    of_teachers: float
    distances: dict[str, dict[str, float]]
    latents: float
    times: list[SideBySide]
    parameters: dict[str, int]

    @property
    def loss(self) -> float:
        """dB of PSNR that the tiny decoder loses."""
        return self.psnr[ROUND_TRIPS[0]] - self.psnr[ROUND_TRIPS[1]]

    @property
    def speed_up(self) -> dict[int, float]:
        """How many times as fast the tiny decoder is, by batch size."""
        return {of.batch_size: of.speed_up(TINY, TEACHER) for of in self.times}

    def describe(self) -> str:
        speeds = ", ".join(f"{times:.1f} times as fast by {size}" for size, times in self.speed_up.items())
        theirs, ours = (self.psnr[way] for way in ROUND_TRIPS[:2])
        if math.isfinite(theirs):
            told = (
                f"{ours:.1f} dB where the teacher's decoder has {theirs:.1f} ({self.loss:.2f} lost, {self.pictures} pictures)"
            )
        else:  # the pictures are what the teacher decoded
            told = f"{ours:.1f} dB from what the teacher's decoder makes ({self.pictures} pictures)"
        return f"{told}; {speeds}" if speeds else told

    def as_json(self) -> dict[str, Any]:
        """Standard JSON; None where a PSNR is infinite, of pictures that are what the teacher decoded."""
        return {
            "pictures": self.pictures,
            "psnr": {way: value if math.isfinite(value) else None for way, value in self.psnr.items()},
            "psnr_lost": self.loss if math.isfinite(self.loss) else None,
            "psnr_from_the_teachers": self.of_teachers,
            "distances": self.distances,
            "latents": self.latents,
            "speed_up": self.speed_up,
            "parameters": self.parameters,
        }


def measure_decoder(
    codec: LatentCodec,
    tiny: Any,
    data: DecodedData,
    *,
    num: int,
    extractor: FeatureExtractor | None = None,
    batch_sizes: tuple[int, ...] = (1, 4),
    rounds: int = 9,
) -> DecoderFigures:
    """All figures, of the first `num` pictures of `data`.

    Args:
        extractor: None leaves the distances out.
        batch_sizes: at which both decoders are timed; none leaves the times out.
    """
    device = codec.vae.device
    batch = data.batch(torch.arange(min(num, len(data))), None)
    size = pictures_at_once(batch.pictures.shape[-1])

    def through(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        return torch.cat([function(few.to(device)).cpu() for few in tensor.split(size)])

    latents = through(lambda pictures: encoded_by(tiny, pictures), batch.pictures)
    made = {
        ROUND_TRIPS[0]: batch.decoded,
        ROUND_TRIPS[1]: through(lambda z: decoded_by(tiny, z), batch.latents),
        ROUND_TRIPS[2]: through(codec.decode, latents),
        ROUND_TRIPS[3]: through(lambda z: decoded_by(tiny, z), latents),
    }
    times = [
        time_side_by_side(
            {
                TEACHER: lambda count: codec.decode(batch.latents[:1].expand(count, -1, -1, -1).to(device)),
                TINY: lambda count: decoded_by(tiny, batch.latents[:1].expand(count, -1, -1, -1).to(device)),
            },
            count,
            rounds=rounds,
            least_seconds=1.0,
            device=device,
        )
        for count in batch_sizes
    ]
    decoders = {TEACHER: [codec.vae.decoder, codec.vae.post_quant_conv], TINY: [tiny.decoder]}
    return DecoderFigures(
        len(batch.pictures),
        {way: _mean_psnr(pictures, batch.pictures) for way, pictures in made.items()},
        _mean_psnr(made[ROUND_TRIPS[1]], batch.decoded),
        {} if extractor is None else _distances(extractor, batch.pictures, made),
        (latents - batch.latents).square().mean().sqrt().item(),
        times,
        {name: sum(p.numel() for part in parts if part for p in part.parameters()) for name, parts in decoders.items()},
    )


def _mean_psnr(pictures: Tensor, others: Tensor) -> float:
    """dB; of the mean squared error over all pictures, so that one that is exact does not count for infinity."""
    return psnr(pictures.flatten()[None, None, None], others.flatten()[None, None, None]).item()


def _distances(extractor: FeatureExtractor, pictures: Tensor, made: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    def statistics(of: Tensor) -> Any:
        return gaussian_statistics(extract(extractor, ((of + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)))

    reference, name = statistics(pictures), metric_name(extractor)
    return {
        decoder: {name: frechet_distance(statistics(made[way]), reference)}
        for decoder, way in ((TEACHER, ROUND_TRIPS[0]), (TINY, ROUND_TRIPS[1]))
    }
