"""A tiny autoencoder beside the one that it learned from: fidelity, whether their halves fit together, and speed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gendistill.data.decoded import DecodedData
from gendistill.diffusion.tiny_autoencoder import FASTEST, decoded_by, encoded_by
from gendistill.metrics.cost.interleaved import SideBySide, time_side_by_side
from gendistill.metrics.distances.frechet import frechet_distance
from gendistill.metrics.features.feature_extractor import FeatureExtractor, extract, metric_name
from gendistill.metrics.features.gaussian import gaussian_statistics
from gendistill.samplers import images_at_once, to_uint8
from gendistill.samplers.codec import LatentCodec

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
        psnr: dB, by the mean squared error over all images, of each way there and back (`ROUND_TRIPS`).
        of_teachers: dB, of the tiny decoder's images from the teacher's decoder's, of the same latents.
        distances: the Fréchet distance of what a decoder makes from the images, by decoder and metric.
        latents: root mean square distance of the tiny encoder's latents from the teacher's, which have about unit variance;
            None where the encoder was left out.
        times: both decoders side by side, by batch size.
        parameters: of both decoders.
    """

    images: int
    psnr: dict[str, float]
    of_teachers: float
    distances: dict[str, dict[str, float]]
    latents: float | None
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
            told = f"{ours:.1f} dB where the teacher's decoder has {theirs:.1f} ({self.loss:.2f} lost, {self.images} images)"
        else:  # the images are what the teacher decoded
            told = f"{ours:.1f} dB from what the teacher's decoder makes ({self.images} images)"
        return f"{told}; {speeds}" if speeds else told

    def as_json(self) -> dict[str, Any]:
        """Standard JSON; None where a PSNR is infinite, of images that are what the teacher decoded."""
        return {
            "images": self.images,
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
    of_encoder: bool = True,
    extractor: FeatureExtractor | None = None,
    batch_sizes: tuple[int, ...] = (1, 4),
    rounds: int = 9,
) -> DecoderFigures:
    """All figures, of the first `num` images of `data`, of which some are in memory at a time.

    Args:
        of_encoder: False leaves out what the tiny encoder is part of.
        extractor: None leaves the distances out.
        batch_sizes: at which both decoders are timed; none leaves the times out.
    """
    codec.vae.to(memory_format=FASTEST)  # as the tiny one is: both are timed in the order in which both are fastest
    count = min(num, len(data))
    size = images_at_once(data.batch(torch.zeros(1).long(), None).images.shape[-1])
    squared: dict[str, float] = {}  # mean squared errors
    features: dict[str, list[Tensor]] = {}
    for rows in torch.arange(count).split(size):
        batch = data.batch(rows, None, codec.vae.device)
        made = {ROUND_TRIPS[0]: batch.decoded, ROUND_TRIPS[1]: decoded_by(tiny, batch.latents)}
        pairs = {"from the teacher's": (made[ROUND_TRIPS[1]], batch.decoded)}
        if extractor is not None:
            for name, images in (("images", batch.images), (TEACHER, batch.decoded), (TINY, made[ROUND_TRIPS[1]])):
                features.setdefault(name, []).append(extract(extractor, to_uint8(images / 2 + 0.5).cpu()))
        if of_encoder:
            latents = encoded_by(tiny, batch.images)
            made |= {ROUND_TRIPS[2]: codec.decode(latents), ROUND_TRIPS[3]: decoded_by(tiny, latents)}
            pairs["latents"] = (latents, batch.latents)
        for name, (one, other) in {**pairs, **{way: (of, batch.images) for way, of in made.items()}}.items():
            error = (one - other).double().square().mean().item()
            squared[name] = squared.get(name, 0) + error * len(rows) / count
    distances: dict[str, dict[str, float]] = {}
    if extractor is not None:
        statistics = {name: gaussian_statistics(torch.cat(of)) for name, of in features.items()}
        real = statistics.pop("images")
        distances = {name: {metric_name(extractor): frechet_distance(of, real)} for name, of in statistics.items()}
    decoders = {TEACHER: [codec.vae.decoder, codec.vae.post_quant_conv], TINY: [tiny.decoder]}
    one = data.batch(torch.zeros(1).long(), None, codec.vae.device).latents
    return DecoderFigures(
        count,
        {way: _psnr(squared[way]) for way in ROUND_TRIPS if way in squared},
        _psnr(squared["from the teacher's"]),
        distances,
        math.sqrt(squared["latents"]) if of_encoder else None,
        [_times(codec, tiny, one, batch_size, rounds) for batch_size in batch_sizes],
        {name: sum(p.numel() for part in parts if part for p in part.parameters()) for name, parts in decoders.items()},
    )


def _times(codec: LatentCodec, tiny: Any, latents: Tensor, batch_size: int, rounds: int) -> SideBySide:
    """Both decoders, of an image's latents (1, C, h, w) so many times."""
    return time_side_by_side(
        {
            TEACHER: lambda count: codec.decode(latents.expand(count, -1, -1, -1)),
            TINY: lambda count: decoded_by(tiny, latents.expand(count, -1, -1, -1)),
        },
        batch_size,
        rounds=rounds,
        min_seconds=1.0,
        device=latents.device,
    )


def _psnr(squared: float) -> float:
    """dB, of the mean squared error over all images in [-1, 1]: one that is exact does not count for infinity."""
    return 10 * math.log10(4 / squared) if squared else math.inf
