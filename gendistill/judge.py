"""One protocol: the same prompts, seeds, reference and feature networks for every model that is judged."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from torch import Tensor

import gendistill
from gendistill.atomic import written_aside
from gendistill.data.batches import LatentData
from gendistill.data.building import HASHES
from gendistill.data.cache import cache_key
from gendistill.data.encode import batched
from gendistill.data.hashing import HashMemo
from gendistill.data.pictures import to_tensor
from gendistill.data.samples import PictureSource
from gendistill.data.sources import Prompts, open_source
from gendistill.diffusion.codec import Codec
from gendistill.metrics.clip_score import ClipScorer, load_scorer
from gendistill.metrics.evaluate import Evaluation, Protocol, evaluate_images
from gendistill.metrics.features import FeatureExtractor, extract, load_extractor, metric_name
from gendistill.metrics.frechet import GaussianStatistics, gaussian_statistics
from gendistill.samplers import FewStepSampler, pictures_at_once, to_uint8

TINY_CLIP = "assets/tiny-clip"
SEED_OF_PROMPTS = 20_000_003  # apart from every training seed

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Judge:
    """What every model of a comparison is held against."""

    prompts: list[str]
    seeds: list[int]
    reference: GaussianStatistics
    reference_name: str
    prompt_source: str
    extractor: FeatureExtractor
    scorer: ClipScorer | None
    seed: int

    @property
    def metric(self) -> str:
        """The name of the distance that decides: `fid`, `fd-emoji`."""
        return metric_name(self.extractor)

    def first(self, count: int) -> Judge:
        """The same with the first `count` prompts only, and without the CLIP score: a quick look."""
        return dataclasses.replace(self.of(range(min(count, len(self.prompts)))), scorer=None)

    def of(self, numbers: Iterable[int]) -> Judge:
        """The same with some of the prompts, by their numbers."""
        chosen = list(numbers)
        prompts, seeds = [self.prompts[number] for number in chosen], [self.seeds[number] for number in chosen]
        return dataclasses.replace(self, prompts=prompts, seeds=seeds)

    def scores(self, pictures: Tensor) -> dict[str, float]:
        """Scores of pictures uint8 (N, 3, H, W), one a prompt."""
        return evaluate_images(pictures, self.prompts, self.reference, self.extractor, self.scorer)

    def draw(self, sampler: FewStepSampler, steps: int, guidance_scale: float, progress: Progress | None = None) -> Tensor:
        """The model's pictures for all prompts, uint8 (N, 3, H, W)."""
        batches = sampler.pictures(
            self.prompts,
            self.seeds,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            batch_size=pictures_at_once(sampler.resolution, 100),
            progress=progress,
        )
        return torch.cat([to_uint8(batch).cpu() for batch in batches])

    def evaluate(
        self,
        sampler: FewStepSampler,
        *,
        model: str,
        solver: str,
        steps: int,
        guidance_scale: float,
        network_calls: int,
        timesteps: list[int] | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Draw, time and score; `timesteps` are only written down."""
        started = time.perf_counter()
        pictures = self.draw(sampler, steps, guidance_scale, progress)
        seconds = (time.perf_counter() - started) / len(pictures)
        protocol = Protocol(
            metric=self.metric,
            extractor=self.extractor.name,
            weights_hash=self.extractor.weights_hash,
            resize=self.extractor.resize,
            num_samples=len(pictures),
            reference=self.reference_name,
            reference_count=self.reference.count,
            seed=self.seed,
            prompts=self.prompt_source,
            guidance_scale=guidance_scale,
            num_inference_steps=steps,
            versions={
                "gendistill": gendistill.__version__,
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
            },
            clip_model=self.scorer.name if self.scorer else None,
            clip_weights_hash=self.scorer.weights_hash if self.scorer else None,
            eta=sampler.eta,
            timesteps=timesteps,
        )
        return Evaluation(model, solver, network_calls, self.scores(pictures), seconds, protocol)


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
    progress: Progress | None = None,
) -> Judge:
    """A judge from real pictures: their feature statistics, and prompts drawn from their captions by frequency.

    Args:
        reference: image folder, WebDataset shards or dataset; `image_column` and `split` are of a dataset.
        prompts: a text file to draw prompts from instead.
        extractor: `emoji`, `inception`, a `.pth` of Inception's weights or a folder; `emoji` where not given.

    Raises:
        ValueError: nothing to compare with.
    """
    source = open_source(reference, caption, seed, image_column=image_column, split=split)
    if isinstance(source, Prompts):
        raise ValueError(f"reference {reference} is a prompt file; takes pictures")
    network = load_extractor(extractor or "emoji")
    statistics, captions = _reference(source, network, Path(cache), progress)
    if prompts is not None:
        captions = Prompts(Path(prompts)).prompts
    generator = torch.Generator().manual_seed(SEED_OF_PROMPTS + seed)
    chosen = torch.randint(len(captions), (num,), generator=generator).tolist()
    captions_of = f"the {caption} captions of" if caption else "the captions of"
    described = f"{num} drawn by frequency from {prompts or f'{captions_of} {Path(reference).name}'}"
    return Judge(
        prompts=[captions[index] for index in chosen],
        seeds=[SEED_OF_PROMPTS + seed * 1_000_000 + number for number in range(num)],
        reference=statistics,
        reference_name=Path(reference).name if Path(reference).is_dir() else "/".join(Path(reference).parts[-2:]),
        prompt_source=described,
        extractor=network,
        scorer=load_scorer(clip or TINY_CLIP),
        seed=seed,
    )


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
        reference=gaussian_statistics(torch.cat(features)),
        reference_name="the teacher's own pictures",
        prompt_source=f"{num} of the training prompts",
        extractor=network,
        scorer=None,
        seed=seed,
    )


def _reference(
    source: PictureSource, extractor: FeatureExtractor, cache: Path, progress: Progress | None
) -> tuple[GaussianStatistics, list[str]]:
    """Feature statistics and captions of all pictures of a source; kept on disk."""
    hashes = HashMemo(cache / HASHES)
    key = cache_key(source=source.fingerprint(hashes), extractor=extractor.name, weights=extractor.weights_hash)
    hashes.keep()
    statistics_file, captions_file = cache / f"reference-{key}.npz", cache / f"reference-{key}.json"
    if statistics_file.is_file() and captions_file.is_file():
        return GaussianStatistics.load(statistics_file), json.loads(captions_file.read_text())
    features, captions = [], []
    for samples in batched(source, 128):
        pictures = [to_tensor(sample.picture, min(sample.picture.size)) for sample in samples]
        if len({picture.shape for picture in pictures}) == 1:
            features.append(extract(extractor, to_uint8(torch.stack(pictures) / 2 + 0.5)))
        else:
            features += [extract(extractor, to_uint8(picture[None] / 2 + 0.5)) for picture in pictures]
        captions += [sample.caption for sample in samples]
        if progress:
            progress(len(samples))
    statistics = gaussian_statistics(torch.cat(features))
    cache.mkdir(parents=True, exist_ok=True)
    with written_aside(statistics_file) as aside:
        statistics.save(aside)
    with written_aside(captions_file) as aside:
        aside.write_text(json.dumps(captions))
    return statistics, captions
