"""One protocol: the same prompts, seeds, reference and feature networks for every model that is judged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

import gendistill
from gendistill.data.batches import LatentData
from gendistill.data.sources.source import Prompts, open_source
from gendistill.evaluation.class_captions import class_caption
from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.evaluation.extraction import Advance, Extraction
from gendistill.evaluation.image_cache import Album, generate
from gendistill.evaluation.reference import read_pictures
from gendistill.metrics.distances.clip_score import ClipScorer, load_scorer
from gendistill.metrics.features.feature_extractor import FeatureExtractor, extract, load_extractor, metric_name
from gendistill.metrics.features.gaussian import gaussian_statistics
from gendistill.metrics.measure import Scores, measure
from gendistill.metrics.metric import Need, ReferenceFeatures, SampleFeatures, needs_met_by
from gendistill.metrics.protocol import Evaluation, EvaluationProtocol
from gendistill.metrics.registry import METRICS, chosen_metrics, default_metrics
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import Sampler, pictures_at_once, to_uint8
from gendistill.samplers.codec import Codec

TINY_CLIP = "assets/tiny-clip"
SEED_OF_PROMPTS = 20_000_003  # apart from every training seed
NUM = 2000  # images per row


@dataclass(frozen=True)
class Judged:
    """A row of a comparison: the evaluation, and what it was computed from."""

    evaluation: Evaluation
    pictures: SampleFeatures


@dataclass(frozen=True)
class Judge:
    """What every model of a comparison is held against.

    Attributes:
        captions: of the reference's pictures, in their order.
        albums: where drawn pictures and their features are kept; None draws anew each time.
        square: whether real pictures are seen by their centre squares, as square drawn ones are held against.
        requested: names of the metrics that were asked for; all usual ones where None.
        intervals: whether scores get 95 % intervals.
    """

    prompts: list[str]
    seeds: list[int]
    reference: ReferenceFeatures
    reference_name: str
    prompt_source: str
    extractor: FeatureExtractor
    scorer: ClipScorer | None
    seed: int
    reference_hash: str | None = None
    captions: list[str] = dataclasses.field(default_factory=list)
    albums: Path | None = None
    square: bool = True
    requested: tuple[str, ...] | None = None
    intervals: bool = True

    @property
    def metric(self) -> str:
        """The name of the distance that decides: `fid`, `fd-emoji`."""
        return metric_name(self.extractor)

    def of_models(self, samplers: Iterable[Sampler]) -> Judge:
        """The same for what these draw: without the CLIP score where prompts are no texts that a picture could fit.

        Raises:
            ValueError: a metric that was asked for cannot be computed of these.
        """
        judge = self if all(sampler.texts for sampler in samplers) else dataclasses.replace(self, scorer=None)
        met = needs_met_by(judge.prompts) | {Need.REFERENCE}
        met |= {Need.REAL_FEATURES} if judge.reference.features is not None else set()
        if judge.scorer is not None:
            met |= {Need.CLIP} | ({Need.CLIP_REFERENCE} if judge.reference.image_embeddings is not None else set())
        for metric in map(METRICS.__getitem__, judge.requested or ()):
            if not metric.of_pairs and (why := metric.lacks(met, len(judge.prompts))):
                raise ValueError(why)
        return judge

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
        return self.measure(seen, quick=True).values

    def measure(self, samples: SampleFeatures, *, quick: bool = False) -> Scores:
        """The distance that decides, and the metrics that were asked for; else the usual ones that can be had of these.

        Args:
            quick: of the usual metrics only those that even a quick look takes, and no intervals.
        """
        names = default_metrics(quick=quick)
        if self.requested is not None:
            names = ("fd", *(name for name in self.requested if not METRICS[name].of_pairs))
        return measure(
            samples,
            self.reference,
            names,
            fd=self.metric,
            clip=self.scorer.name if self.scorer else None,
            intervals=self.intervals and not quick,
            seed=self.seed,
            skip_missing=True,
        )

    def draw(self, sampler: Sampler, steps: int, guidance_scale: float, progress: Advance = None) -> Tensor:
        """The model's pictures for all prompts, uint8 (N, 3, H, W)."""
        return torch.cat(list(self.batches(sampler, steps, guidance_scale, progress)))

    def batches(self, sampler: Sampler, steps: int, guidance_scale: float, progress: Advance = None) -> Iterator[Tensor]:
        """The same batch by batch, from the model's album where albums are kept."""
        if self.albums is None:
            return generate(sampler, self.prompts, self.seeds, steps, guidance_scale, progress)
        return Album(self.albums / "drawn", sampler, steps, guidance_scale).pictures(self.prompts, self.seeds, progress)

    def look(self, sampler: Sampler, steps: int, guidance_scale: float, progress: Advance = None) -> SampleFeatures:
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
        steps: int,
        guidance_scale: float,
        solver: str | None = None,
        timesteps: list[int] | None = None,
        quick: bool = False,
        progress: Advance = None,
    ) -> Judged:
        """Draw, time and score; `solver` and `timesteps` are only written down, `quick` is as for `measure`."""
        started = time.perf_counter()
        pictures = self.look(sampler, steps, guidance_scale, progress)
        seconds: float | None = (time.perf_counter() - started) / len(self.prompts)
        if self.albums is not None:
            seconds = Album(self.albums / "drawn", sampler, steps, guidance_scale).seconds_per_picture
        scores, calls = self.measure(pictures, quick=quick), sampler.network_calls(steps, guidance_scale)
        protocol = EvaluationProtocol(
            metric=self.metric,
            num_samples=len(self.prompts),
            reference=self.reference_name,
            reference_count=self.reference.statistics.count,
            seed=self.seed,
            prompts=self.prompt_source,
            guidance_scale=guidance_scale,
            num_inference_steps=steps,
            eta=sampler.eta,
            timesteps=timesteps,
            reference_hash=self.reference_hash,
            **networks_of(self.extractor, self.scorer),
        )
        found = Evaluation(model, solver or sampler.solver, calls, scores.values, seconds, protocol, scores.intervals)
        return Judged(found, pictures)


def networks_of(extractor: FeatureExtractor, scorer: ClipScorer | None) -> dict[str, Any]:
    """What a protocol says of the networks that look at pictures, and of the packages that run them."""
    return {
        "extractor": extractor.name,
        "weights_hash": extractor.weights_hash,
        "resize": extractor.resize,
        "clip_model": scorer.name if scorer else None,
        "clip_weights_hash": scorer.weights_hash if scorer else None,
        "versions": {"gendistill": gendistill.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
    }


def build_judge(
    config: EvaluationConfig,
    samplers: Iterable[Sampler] = (),
    *,
    image_column: str | None = None,
    split: str | None = None,
    keep: bool = False,
    clip_score: bool = True,
) -> Judge:
    """A judge from real pictures: their features, and prompts drawn from their captions by frequency.

    Real pictures are seen by their centre squares where all samplers draw squares. Without a caption field, the one that names
    the samplers' classes is taken.

    Args:
        samplers: of the models that are judged.
        image_column, split: of a reference that is a dataset.
        keep: whether drawn pictures and their features are kept in the cache.
        clip_score: whether a CLIP model is loaded for the CLIP score.

    Raises:
        ValueError: nothing to compare with, or a metric is unknown or cannot be computed of what these draw.
    """
    samplers, reference, seed = list(samplers), config.reference, config.seed
    num, device = config.num or NUM, config.device or "cpu"
    caption = config.caption
    if caption is None and config.prompts is None:
        caption = class_caption(reference, samplers)
    requested = None if config.metrics is None else chosen_metrics(config.metrics)
    source = open_source(reference, caption, seed, image_column=image_column, split=split)
    if isinstance(source, Prompts):
        raise ValueError(f"reference {reference} is a prompt file; takes pictures")
    network = load_extractor(config.extractor or "emoji", device, config.resize)
    scorer = load_scorer(config.clip or TINY_CLIP, device) if clip_score else None
    embedded = any(Need.CLIP_REFERENCE in METRICS[name].needs for name in requested or ())
    extraction = Extraction(network, scorer if embedded else None, Path(config.cache))
    square = all(sampler.size[0] == sampler.size[1] for sampler in samplers)
    with advancing_bar("reading the reference") as progress:
        real = read_pictures(source, extraction, square=square, progress=progress)
    assert real.seen is not None
    captions = real.seen.captions if config.prompts is None else Prompts(Path(config.prompts)).prompts
    captions_of = f"the {caption} captions of" if caption else "the captions of"
    return Judge(
        prompts=_drawn(captions, num, seed),
        seeds=seeds_of(seed, num),
        reference=real.reference,
        reference_name=name_of(reference),
        prompt_source=f"{num} drawn by frequency from {config.prompts or f'{captions_of} {Path(reference).name}'}",
        extractor=network,
        scorer=scorer,
        seed=seed,
        reference_hash=real.seen.contents,
        captions=real.seen.captions,
        albums=Path(config.cache) if keep else None,
        square=square,
        requested=requested,
        intervals=config.intervals,
    ).of_models(samplers)


def seeds_of(seed: int, num: int) -> list[int]:
    """Of `num` pictures of an evaluation."""
    return [SEED_OF_PROMPTS + seed * 1_000_000 + number for number in range(num)]


def _drawn(captions: list[str], num: int, seed: int) -> list[str]:
    """So many of them, by frequency."""
    generator = torch.Generator().manual_seed(SEED_OF_PROMPTS + seed)
    return [captions[index] for index in torch.randint(len(captions), (num,), generator=generator).tolist()]


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
    return Judge(
        prompts=_drawn(prompts, num, seed),
        seeds=seeds_of(seed, num),
        reference=ReferenceFeatures(gaussian_statistics(torch.cat(features))),
        reference_name="the teacher's own pictures",
        prompt_source=f"{num} of the training prompts",
        extractor=network,
        scorer=None,
        seed=seed,
    )
