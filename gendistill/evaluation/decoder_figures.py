"""A tiny autoencoder compared with its teacher: fidelity, compatibility of their encoders and decoders, and speed."""

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
    """Figures of a tiny autoencoder.

    Attributes:
        images: number of images.
        psnr: PSNR of each round trip (`ROUND_TRIPS`) in dB, from the mean squared error over all images.
        psnr_from_teacher: PSNR in dB between the images of the tiny decoder and of the teacher's decoder for equal latents.
        distances: Fréchet distance between decoded images and the originals, by decoder and metric.
        latents: root mean square error between the latents of the tiny encoder and of the teacher's, which have about unit
            variance; None if the encoder was not measured.
        times: times of both decoders, one entry per batch size.
        parameters: number of parameters of both decoders.
    """

    images: int
    psnr: dict[str, float]
    psnr_from_teacher: float
    distances: dict[str, dict[str, float]]
    latents: float | None
    times: list[SideBySide]
    parameters: dict[str, int]

    @property
    def loss(self) -> float:
        """PSNR in dB that the tiny decoder loses."""
        return self.psnr[ROUND_TRIPS[0]] - self.psnr[ROUND_TRIPS[1]]

    @property
    def speed_up(self) -> dict[int, float]:
        """Speed of the tiny decoder as a multiple of the teacher's, by batch size."""
        return {timing.batch_size: timing.speed_up(TINY, TEACHER) for timing in self.times}

    def describe(self) -> str:
        speeds = ", ".join(f"{factor:.1f} times as fast at batch size {size}" for size, factor in self.speed_up.items())
        teacher, tiny = (self.psnr[trip] for trip in ROUND_TRIPS[:2])
        if math.isfinite(teacher):
            quality = f"PSNR {tiny:.1f} dB, teacher's decoder {teacher:.1f} dB ({self.loss:.2f} lost, {self.images} images)"
        else:  # the images were decoded by the teacher
            quality = f"PSNR {tiny:.1f} dB from the images of the teacher's decoder ({self.images} images)"
        return f"{quality}; {speeds}" if speeds else quality

    def as_json(self) -> dict[str, Any]:
        """Standard JSON; an infinite PSNR, of images that the teacher decoded, is None."""
        return {
            "images": self.images,
            "psnr": {trip: value if math.isfinite(value) else None for trip, value in self.psnr.items()},
            "psnr_lost": self.loss if math.isfinite(self.loss) else None,
            "psnr_from_the_teachers": self.psnr_from_teacher,
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
    measure_encoder: bool = True,
    extractor: FeatureExtractor | None = None,
    batch_sizes: tuple[int, ...] = (1, 4),
    rounds: int = 9,
) -> DecoderFigures:
    """Measure the figures on the first `num` images of `data`, batch by batch.

    Args:
        measure_encoder: False skips the figures of the tiny encoder.
        extractor: feature network of the distances; None skips them.
        batch_sizes: batch sizes at which both decoders are timed; none skips the times.
    """
    codec.vae.to(memory_format=FASTEST)  # as for the tiny autoencoder: each is timed in its fastest memory format
    count = min(num, len(data))
    size = images_at_once(data.batch(torch.zeros(1).long(), None).images.shape[-1])
    squared: dict[str, float] = {}  # mean squared errors
    features: dict[str, list[Tensor]] = {}
    for rows in torch.arange(count).split(size):
        batch = data.batch(rows, None, codec.vae.device)
        decoded = {ROUND_TRIPS[0]: batch.decoded, ROUND_TRIPS[1]: decoded_by(tiny, batch.latents)}
        pairs = {"from the teacher's": (decoded[ROUND_TRIPS[1]], batch.decoded)}
        if extractor is not None:
            for name, images in (("images", batch.images), (TEACHER, batch.decoded), (TINY, decoded[ROUND_TRIPS[1]])):
                features.setdefault(name, []).append(extract(extractor, to_uint8(images / 2 + 0.5).cpu()))
        if measure_encoder:
            latents = encoded_by(tiny, batch.images)
            decoded |= {ROUND_TRIPS[2]: codec.decode(latents), ROUND_TRIPS[3]: decoded_by(tiny, latents)}
            pairs["latents"] = (latents, batch.latents)
        for name, (value, target) in {**pairs, **{trip: (image, batch.images) for trip, image in decoded.items()}}.items():
            error = (value - target).double().square().mean().item()
            squared[name] = squared.get(name, 0) + error * len(rows) / count
    distances: dict[str, dict[str, float]] = {}
    if extractor is not None:
        statistics = {name: gaussian_statistics(torch.cat(batches)) for name, batches in features.items()}
        real = statistics.pop("images")
        distances = {name: {metric_name(extractor): frechet_distance(fake, real)} for name, fake in statistics.items()}
    decoders = {TEACHER: [codec.vae.decoder, codec.vae.post_quant_conv], TINY: [tiny.decoder]}
    latents = data.batch(torch.zeros(1).long(), None, codec.vae.device).latents
    return DecoderFigures(
        count,
        {trip: _psnr(squared[trip]) for trip in ROUND_TRIPS if trip in squared},
        _psnr(squared["from the teacher's"]),
        distances,
        math.sqrt(squared["latents"]) if measure_encoder else None,
        [_times(codec, tiny, latents, batch_size, rounds) for batch_size in batch_sizes],
        {name: sum(p.numel() for part in parts if part for p in part.parameters()) for name, parts in decoders.items()},
    )


def _times(codec: LatentCodec, tiny: Any, latents: Tensor, batch_size: int, rounds: int) -> SideBySide:
    """Times of both decoders for a batch of copies of an image's latents (1, C, h, w)."""
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
    """PSNR in dB from the mean squared error over all images in [-1, 1]: a single exact image does not make it infinite."""
    return 10 * math.log10(4 / squared) if squared else math.inf
