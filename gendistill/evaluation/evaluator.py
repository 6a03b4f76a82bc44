"""One protocol: the same prompts, seeds, reference and feature networks for every model that is evaluated."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
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
from gendistill.data.texts import printable
from gendistill.evaluation.class_captions import class_caption
from gendistill.evaluation.default_extractor import is_embedded, prompts_of
from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.evaluation.extraction import Advance, Extraction
from gendistill.evaluation.image_cache import ImageCache, generate
from gendistill.evaluation.reference import read_images
from gendistill.metrics.distances.clip_score import ClipScorer, load_scorer
from gendistill.metrics.features.feature_extractor import FeatureExtractor, extract, load_extractor, metric_name, network_name
from gendistill.metrics.features.gaussian import gaussian_statistics
from gendistill.metrics.measure import Scores, measure
from gendistill.metrics.metric import Need, ReferenceFeatures, SampleFeatures, needs_met_by
from gendistill.metrics.protocol import Evaluation, EvaluationProtocol
from gendistill.metrics.registry import METRICS, chosen_metrics, default_metrics
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import Sampler, images_at_once, to_uint8
from gendistill.samplers.codec import Codec

logger = logging.getLogger(__name__)

TINY_CLIP = "assets/tiny-clip"
SEED_OF_PROMPTS = 20_000_003  # differs from every training seed
NUM = 2000  # images per row


@dataclass(frozen=True)
class EvaluatedModel:
    """A row of a comparison: the evaluation, and the features that it was computed from."""

    evaluation: Evaluation
    images: SampleFeatures


@dataclass(frozen=True)
class Evaluator:
    """Prompts, seeds, reference and feature networks that every model of a comparison is evaluated with.

    Attributes:
        captions: captions of the reference's images, in their order.
        image_caches: folder in which sampled images and their features are cached; None samples anew each time.
        square: whether real images are cropped to their centre squares, for models that sample square images.
        requested: names of the requested metrics; None computes the default ones.
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
    image_caches: Path | None = None
    square: bool = True
    requested: tuple[str, ...] | None = None
    intervals: bool = True

    @property
    def metric(self) -> str:
        """The name of the primary metric, the Fréchet distance: `fid`, `fd-emoji`."""
        return metric_name(self.extractor)

    @property
    def network(self) -> str:
        """The feature network, with the hash of its weights."""
        return network_name(self.extractor)

    def for_models(self, samplers: Iterable[Sampler]) -> Evaluator:
        """The evaluator for these models: without the CLIP score unless the prompts of all of them are texts.

        Raises:
            ValueError: a requested metric cannot be computed for these models.
        """
        evaluator = self if all(sampler.texts for sampler in samplers) else dataclasses.replace(self, scorer=None)
        met = needs_met_by(evaluator.prompts) | {Need.REFERENCE}
        met |= {Need.REAL_FEATURES} if evaluator.reference.features is not None else set()
        if evaluator.scorer is not None:
            met |= {Need.CLIP} | ({Need.CLIP_REFERENCE} if evaluator.reference.image_embeddings is not None else set())
        for metric in map(METRICS.__getitem__, evaluator.requested or ()):
            if not metric.of_pairs and (why := metric.lacks(met, len(evaluator.prompts), real=evaluator.reference.features)):
                raise ValueError(why)
        return evaluator

    def first(self, count: int) -> Evaluator:
        """The evaluator with the first `count` prompts only, and without the CLIP score."""
        return dataclasses.replace(self.subset(range(min(count, len(self.prompts)))), scorer=None)

    def subset(self, numbers: Iterable[int]) -> Evaluator:
        """The evaluator with the prompts and seeds at these indices."""
        chosen = list(numbers)
        return self.with_prompts([self.prompts[number] for number in chosen], [self.seeds[number] for number in chosen])

    def with_prompts(self, prompts: list[str], seeds: list[int]) -> Evaluator:
        """The evaluator with other prompts and seeds."""
        return dataclasses.replace(self, prompts=prompts, seeds=seeds)

    def scores(self, images: Tensor) -> dict[str, float]:
        """The distance and, with a scorer, the CLIP score of images uint8 (N, 3, H, W), one per prompt."""
        samples = Extraction(self.extractor, self.scorer).extract(lambda: images, self.prompts)
        return self.measure(samples, quick=True).values

    def measure(self, samples: SampleFeatures, *, quick: bool = False) -> Scores:
        """The primary metric and the requested metrics; by default all default metrics that these samples allow.

        Args:
            quick: only the default metrics of quick evaluations, without intervals.
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

    def generate(self, sampler: Sampler, steps: int, guidance_scale: float, progress: Advance = None) -> Tensor:
        """The model's images for all prompts, uint8 (N, 3, H, W)."""
        return torch.cat(list(self.batches(sampler, steps, guidance_scale, progress)))

    def batches(self, sampler: Sampler, steps: int, guidance_scale: float, progress: Advance = None) -> Iterator[Tensor]:
        """Batches of these images, from the model's image cache if `image_caches` is set."""
        if self.image_caches is None:
            return generate(sampler, self.prompts, self.seeds, steps, guidance_scale, progress)
        return ImageCache(self.image_caches / "sampled", sampler, steps, guidance_scale).images(
            self.prompts, self.seeds, progress
        )

    def sample_features(self, sampler: Sampler, steps: int, guidance_scale: float, progress: Advance = None) -> SampleFeatures:
        """Features of the model's images for all prompts; cached if `image_caches` is set."""
        extraction = Extraction(self.extractor, self.scorer, self.image_caches)
        if self.image_caches is None:
            generated = self.generate(sampler, steps, guidance_scale, progress)
            return extraction.extract(lambda: generated, self.prompts)
        prompts_hash = hashlib.sha256(json.dumps([self.prompts, self.seeds]).encode()).hexdigest()
        source = ["sampled", ImageCache.key_of(sampler, steps, guidance_scale), prompts_hash]
        return extraction.extract(
            lambda: self.batches(sampler, steps, guidance_scale), self.prompts, source=source, progress=progress
        )

    def evaluate(
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
    ) -> EvaluatedModel:
        """Sample, time and score; `solver` and `timesteps` are only recorded, `quick` is passed to `measure`."""
        started = time.perf_counter()
        images = self.sample_features(sampler, steps, guidance_scale, progress)
        seconds: float | None = (time.perf_counter() - started) / len(self.prompts)
        if self.image_caches is not None:
            seconds = ImageCache(self.image_caches / "sampled", sampler, steps, guidance_scale).seconds_per_image
        scores, calls = self.measure(images, quick=quick), sampler.network_calls(steps, guidance_scale)
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
            dtype=str(sampler.dtype).removeprefix("torch."),
            reference_hash=self.reference_hash,
            **networks_of(self.extractor, self.scorer),
        )
        evaluation = Evaluation(model, solver or sampler.solver, calls, scores.values, seconds, protocol, scores.intervals)
        return EvaluatedModel(evaluation, images)


def networks_of(extractor: FeatureExtractor, scorer: ClipScorer | None) -> dict[str, Any]:
    """Fields of a protocol that describe the feature networks and the versions of the packages that run them."""
    return {
        "extractor": extractor.name,
        "weights_hash": extractor.weights_hash,
        "resize": extractor.resize,
        "clip_model": scorer.name if scorer else None,
        "clip_weights_hash": scorer.weights_hash if scorer else None,
        "versions": {"gendistill": gendistill.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
    }


def build_evaluator(
    config: EvaluationConfig,
    samplers: Iterable[Sampler] = (),
    *,
    image_column: str | None = None,
    split: str | None = None,
    keep: bool = False,
    clip_score: bool = True,
) -> Evaluator:
    """An evaluator from real images: their features, and prompts sampled from their captions by frequency.

    Real images are cropped to their centre squares if all models sample square images. The default caption field is the one
    that names the models' classes.

    Args:
        samplers: samplers of the models to evaluate.
        image_column, split: image column and split of a reference that is a dataset.
        keep: whether sampled images and their features are cached.
        clip_score: whether a CLIP model is loaded for the CLIP score.

    Raises:
        ValueError: the reference has no images, or a metric is unknown or cannot be computed for these models.
    """
    samplers, reference, seed = list(samplers), config.reference, config.seed
    num, device = config.num or NUM, config.device or "cpu"
    caption = config.caption
    if caption is None and config.prompts is None:
        caption = class_caption(reference, samplers)
    requested = None if config.metrics is None else chosen_metrics(config.metrics)
    source = open_source(reference, caption, seed, image_column=image_column, split=split)
    if isinstance(source, Prompts):
        raise ValueError(f"reference {reference} is a prompt file; expects images")
    embedded = all(is_embedded(sampler.size, prompts_of(sampler), reference) for sampler in samplers)
    network = load_extractor(config.extractor or ("emoji" if embedded else "inception"), device, config.resize)
    scorer = load_scorer(config.clip or TINY_CLIP, device) if clip_score else None
    embeds_reference = any(Need.CLIP_REFERENCE in METRICS[name].needs for name in requested or ())
    extraction = Extraction(network, scorer if embeds_reference else None, Path(config.cache))
    square = all(sampler.size[0] == sampler.size[1] for sampler in samplers)
    with advancing_bar("reading the reference") as progress:
        real = read_images(source, extraction, square=square, progress=progress)
    assert real.metadata is not None
    captions = real.metadata.captions if config.prompts is None else Prompts(Path(config.prompts)).prompts
    if not all(captions) and any(sampler.texts for sampler in samplers):
        source.require_captions("--caption", "--prompts FILE")
        logger.warning(
            "%d of %d images of %s have no caption: the prompt ''", captions.count(""), len(captions), name_of(reference)
        )
    captions_of = f"{f'the {caption} captions' if caption else 'the captions'} of {printable(Path(reference).name)}"
    return Evaluator(
        prompts=_sampled_prompts(captions, num, seed),
        seeds=seeds_of(seed, num),
        reference=real.reference,
        reference_name=name_of(reference),
        prompt_source=f"{num} prompts sampled by frequency from {config.prompts or captions_of}",
        extractor=network,
        scorer=scorer,
        seed=seed,
        reference_hash=real.metadata.contents,
        captions=real.metadata.captions,
        image_caches=Path(config.cache) if keep else None,
        square=square,
        requested=requested,
        intervals=config.intervals,
    ).for_models(samplers)


def seeds_of(seed: int, num: int) -> list[int]:
    """Seeds of the `num` images of an evaluation."""
    return [SEED_OF_PROMPTS + seed * 1_000_000 + number for number in range(num)]


def _sampled_prompts(captions: list[str], num: int, seed: int) -> list[str]:
    """`num` captions, sampled uniformly with replacement: a repeated caption is sampled as often as it occurs."""
    generator = torch.Generator().manual_seed(SEED_OF_PROMPTS + seed)
    return [captions[index] for index in torch.randint(len(captions), (num,), generator=generator).tolist()]


def name_of(source: str) -> str:
    """A short name of a set of images: the folder's name, or `emoji/train-*.tar.gz`."""
    return printable(Path(source).name if Path(source).is_dir() else "/".join(Path(source).parts[-2:]))


def teacher_evaluator(
    data: LatentData,
    codec: Codec,
    prompts: list[str],
    *,
    num: int,
    seed: int,
    extractor: str,
    rows: Tensor | None = None,
) -> Evaluator:
    """An evaluator whose reference is the teacher's images, decoded from the latents that it generated for training.

    Args:
        data: cached latents that the teacher generated from `prompts`, or those of images with these captions.
        rows: of the data that are the reference, with repetitions; None for all.
        num: number of prompts to evaluate on, with seeds that differ from those of the cached latents.
    """
    network = load_extractor(extractor)
    features = []
    edge = max(data.cache.rows([0])["moments"].shape[-2:]) * codec.factor
    for batch in (torch.arange(len(data)) if rows is None else rows).split(images_at_once(edge)):
        moments = data.cache.rows(batch)["moments"].float()
        features.append(extract(network, to_uint8(codec.decode(moments.chunk(2, dim=1)[0]) / 2 + 0.5).cpu()))
    return Evaluator(
        prompts=_sampled_prompts(prompts, num, seed),
        seeds=seeds_of(seed, num),
        reference=ReferenceFeatures(gaussian_statistics(torch.cat(features))),
        reference_name="the teacher's own images" if rows is None else "the training images",
        prompt_source=f"{num} of the training prompts",
        extractor=network,
        scorer=None,
        seed=seed,
    )
