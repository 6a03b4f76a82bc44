"""One protocol: the same prompts, seeds, reference and feature networks for every model that is judged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from torch import Tensor

import gendistill
from gendistill.data.batches import LatentData
from gendistill.data.sources.source import Prompts, open_source
from gendistill.evaluation.extraction import Extraction
from gendistill.evaluation.image_cache import Album
from gendistill.evaluation.reference import read_reference
from gendistill.metrics.distances.clip_score import ClipScorer, load_scorer
from gendistill.metrics.distances.frechet import gaussian_statistics
from gendistill.metrics.evaluate import Evaluation, Protocol
from gendistill.metrics.features.feature_extractor import FeatureExtractor, extract, load_extractor, metric_name
from gendistill.metrics.measure import NEIGHBOURS, OF_CLIP, Pictures, Reference, Scores, measure
from gendistill.samplers import Sampler, pictures_at_once, to_uint8
from gendistill.samplers.codec import Codec

TINY_CLIP = "assets/tiny-clip"
SEED_OF_PROMPTS = 20_000_003  # apart from every training seed
QUICK_METRICS = ("fd", "clip_score")
METRICS = ("fd", "kid", "prdc", "vendi", "diversity", "clip_score", "clip_r")

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Judged:
    """A row of a comparison: the evaluation, and what it was computed from."""

    evaluation: Evaluation
    scores: Scores
    pictures: Pictures


@dataclass(frozen=True)
class Judge:
    """What every model of a comparison is held against.

    Attributes:
        captions: of the reference's pictures, in their order.
        albums: where drawn pictures and their features are kept; None draws anew each time.
        square: whether real pictures are seen by their centre squares, as square drawn ones are held against.
    """

    prompts: list[str]
    seeds: list[int]
    reference: Reference
    reference_name: str
    prompt_source: str
    extractor: FeatureExtractor
    scorer: ClipScorer | None
    seed: int
    reference_hash: str | None = None
    captions: list[str] = dataclasses.field(default_factory=list)
    albums: Path | None = None
    square: bool = True

    @property
    def metric(self) -> str:
        """The name of the distance that decides: `fid`, `fd-emoji`."""
        return metric_name(self.extractor)

    def of_models(self, samplers: Iterable[Sampler]) -> Judge:
        """The same for what these draw: without the CLIP score where prompts are no texts that a picture could fit."""
        return self if all(sampler.texts for sampler in samplers) else dataclasses.replace(self, scorer=None)

    def first(self, count: int) -> Judge:
        """The same with the first `count` prompts only, and without the CLIP score: a quick look."""
        return dataclasses.replace(self.of(range(min(count, len(self.prompts)))), scorer=None)

    def of(self, numbers: Iterable[int]) -> Judge:
        """The same with some of the prompts, by their numbers."""
        chosen = list(numbers)
        return self.on([self.prompts[number] for number in chosen], [self.seeds[number] for number in chosen])

    def on(self, prompts: list[str], seeds: list[int]) -> Judge:
        """The same with other prompts and seeds."""
        return dataclasses.replace(self, prompts=prompts, seeds=seeds)

    def scores(self, pictures: Tensor) -> dict[str, float]:
        """The distance and, with a scorer, the CLIP score of pictures uint8 (N, 3, H, W), one a prompt."""
        seen = Extraction(self.extractor, self.scorer).of(lambda: pictures, self.prompts)
        return self.measure(seen, QUICK_METRICS, intervals=False).values

    def measure(self, pictures: Pictures, metrics: Iterable[str], *, intervals: bool = True) -> Scores:
        """Those of the metrics that can be had of so many pictures, of these prompts, and with or without a scorer."""
        unable = set() if self.scorer is not None else set(OF_CLIP)
        unable |= {"diversity"} if len(set(self.prompts)) == len(self.prompts) else set()
        unable |= {"prdc"} if len(self.prompts) <= NEIGHBOURS or self.reference.features is None else set()
        able = [name for name in metrics if name not in unable]
        clip = self.scorer.name if self.scorer else None
        return measure(pictures, self.reference, able, fd=self.metric, clip=clip, intervals=intervals, seed=self.seed)

    def draw(self, sampler: Sampler, steps: int, guidance_scale: float, progress: Progress | None = None) -> Tensor:
        """The model's pictures for all prompts, uint8 (N, 3, H, W)."""
        return torch.cat(list(self.batches(sampler, steps, guidance_scale, progress)))

    def batches(
        self, sampler: Sampler, steps: int, guidance_scale: float, progress: Progress | None = None
    ) -> Iterator[Tensor]:
        """The same batch by batch, from the model's album where albums are kept."""
        if self.albums is not None:
            album = Album(self.albums / "drawn", sampler, steps, guidance_scale)
            return album.pictures(self.prompts, self.seeds, progress)
        batches = sampler.pictures(
            self.prompts,
            self.seeds,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            batch_size=pictures_at_once(sampler.resolution, 100),
            progress=progress,
        )
        return (to_uint8(batch).cpu() for batch in batches)

    def look(self, sampler: Sampler, steps: int, guidance_scale: float, progress: Progress | None = None) -> Pictures:
        """Features of the model's pictures for all prompts; kept where albums are."""
        extraction = Extraction(self.extractor, self.scorer, self.albums)
        if self.albums is None:
            drawn = self.draw(sampler, steps, guidance_scale, progress)
            return extraction.of(lambda: drawn, self.prompts)
        asked = hashlib.sha256(json.dumps([self.prompts, self.seeds]).encode()).hexdigest()
        source = ["drawn", Album.key_of(sampler, steps, guidance_scale), asked]
        return extraction.of(
            lambda: self.batches(sampler, steps, guidance_scale), self.prompts, source=source, progress=progress
        )

    def judge(
        self,
        sampler: Sampler,
        *,
        model: str,
        solver: str,
        steps: int,
        guidance_scale: float,
        network_calls: int,
        timesteps: list[int] | None = None,
        metrics: Iterable[str] = QUICK_METRICS,
        intervals: bool = False,
        progress: Progress | None = None,
    ) -> Judged:
        """Draw, time and score; `timesteps` are only written down."""
        started = time.perf_counter()
        pictures = self.look(sampler, steps, guidance_scale, progress)
        seconds: float | None = (time.perf_counter() - started) / len(self.prompts)
        if self.albums is not None:
            seconds = Album(self.albums / "drawn", sampler, steps, guidance_scale).seconds_per_picture
        scores = self.measure(pictures, metrics, intervals=intervals)
        protocol = self.protocol(guidance_scale=guidance_scale, num_inference_steps=steps, eta=sampler.eta, timesteps=timesteps)
        evaluation = Evaluation(model, solver, network_calls, scores.values, seconds, protocol, scores.intervals)
        return Judged(evaluation, scores, pictures)

    def protocol(
        self,
        *,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        eta: float = 0.0,
        timesteps: list[int] | None = None,
    ) -> Protocol:
        """What a result says of how it was made."""
        return Protocol(
            metric=self.metric,
            extractor=self.extractor.name,
            weights_hash=self.extractor.weights_hash,
            resize=self.extractor.resize,
            num_samples=len(self.prompts),
            reference=self.reference_name,
            reference_count=self.reference.statistics.count,
            seed=self.seed,
            prompts=self.prompt_source,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            versions=versions(),
            clip_model=self.scorer.name if self.scorer else None,
            clip_weights_hash=self.scorer.weights_hash if self.scorer else None,
            eta=eta,
            timesteps=timesteps,
            reference_hash=self.reference_hash,
        )


def versions() -> dict[str, str]:
    """Of what figures depend on."""
    return {"gendistill": gendistill.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__}


def build_judge(
    reference: str,
    *,
    caption: str | dict[str, float] | None = None,
    num: int = 2000,
    seed: int = 0,
    extractor: str | None = None,
    clip: str | None = None,
    prompts: str | None = None,
    cache: str = ".cache/gendistill",
    image_column: str | None = None,
    split: str | None = None,
    keep: bool = False,
    square: bool = True,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Judge:
    """A judge from real pictures: their features, and prompts drawn from their captions by frequency.

    Args:
        reference: image folder, WebDataset shards or dataset; `image_column` and `split` are of a dataset.
        prompts: a text file to draw prompts from instead.
        extractor: what `load_extractor` takes; `emoji` where not given.
        keep: whether drawn pictures and their features are kept in the cache.
        square: whether what is judged draws squares.

    Raises:
        ValueError: nothing to compare with.
    """
    source = open_source(reference, caption, seed, image_column=image_column, split=split)
    if isinstance(source, Prompts):
        raise ValueError(f"reference {reference} is a prompt file; takes pictures")
    network, scorer = load_extractor(extractor or "emoji", device), load_scorer(clip or TINY_CLIP, device)
    real = read_reference(source, Extraction(network, None, Path(cache)), square=square, progress=progress)
    captions = real.seen.captions if prompts is None else Prompts(Path(prompts)).prompts
    generator = torch.Generator().manual_seed(SEED_OF_PROMPTS + seed)
    chosen = torch.randint(len(captions), (num,), generator=generator).tolist()
    captions_of = f"the {caption} captions of" if caption else "the captions of"
    described = f"{num} drawn by frequency from {prompts or f'{captions_of} {Path(reference).name}'}"
    return Judge(
        prompts=[captions[index] for index in chosen],
        seeds=[SEED_OF_PROMPTS + seed * 1_000_000 + number for number in range(num)],
        reference=real.reference,
        reference_name=name_of(reference),
        prompt_source=described,
        extractor=network,
        scorer=scorer,
        seed=seed,
        reference_hash=real.seen.contents,
        captions=real.seen.captions,
        albums=Path(cache) if keep else None,
        square=square,
    )


def name_of(source: str) -> str:
    """A set of pictures in a word: the folder's name, or `emoji/train-*.tar.gz`."""
    return Path(source).name if Path(source).is_dir() else "/".join(Path(source).parts[-2:])


def teacher_judge(
    data: LatentData, codec: Codec, prompts: list[str], *, num: int, seed: int, extractor: str | None = None
) -> Judge:
    """A judge without real pictures: the teacher's own, decoded from the latents that it made for training.

    Args:
        data: cached latents that the teacher made of `prompts`.
        num: prompts to judge on, drawn anew, with seeds that the cached latents were not made with.
    """
    network = load_extractor(extractor or "emoji")
    features = []
    edge = data.cache.rows([0])["moments"].shape[-1] * codec.factor
    for rows in torch.arange(len(data)).split(pictures_at_once(edge)):
        moments = data.cache.rows(rows)["moments"].float()
        features.append(extract(network, to_uint8(codec.decode(moments.chunk(2, dim=1)[0]) / 2 + 0.5).cpu()))
    chosen = torch.randint(len(prompts), (num,), generator=torch.Generator().manual_seed(SEED_OF_PROMPTS + seed)).tolist()
    return Judge(
        prompts=[prompts[index] for index in chosen],
        seeds=[SEED_OF_PROMPTS + seed * 1_000_000 + number for number in range(num)],
        reference=Reference(gaussian_statistics(torch.cat(features))),
        reference_name="the teacher's own pictures",
        prompt_source=f"{num} of the training prompts",
        extractor=network,
        scorer=None,
        seed=seed,
    )
