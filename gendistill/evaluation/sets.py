"""Sets of pictures that lie somewhere, held against real ones: what anyone can evaluate, wherever the pictures are from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Group
from rich.text import Text

from gendistill.assets import asset_path
from gendistill.data.sources.captions import CaptionOption
from gendistill.data.sources.shards import SHARD_SUFFIXES
from gendistill.data.sources.source import Prompts, open_source
from gendistill.evaluation.evaluate_student import student_folders
from gendistill.evaluation.evaluation_config import CACHE, EvaluationConfig
from gendistill.evaluation.extraction import Extraction
from gendistill.evaluation.judge import TINY_CLIP, name_of, networks_of
from gendistill.evaluation.reference import PictureSet, read_pictures
from gendistill.metrics.distances.clip_score import ClipScorer, load_scorer
from gendistill.metrics.distances.frechet import frechet_distance
from gendistill.metrics.distances.uncertainty import sample_size_warning
from gendistill.metrics.features.feature_extractor import FeatureExtractor, load_extractor, metric_name
from gendistill.metrics.features.gaussian import GaussianStatistics
from gendistill.metrics.measure import Scores, measure
from gendistill.metrics.metric import Need, SampleFeatures
from gendistill.metrics.protocol import Evaluation, EvaluationProtocol
from gendistill.metrics.registry import METRICS, chosen_metrics, default_metrics
from gendistill.runtime.device import make_folder, usable_device
from gendistill.runtime.files import written_aside
from gendistill.runtime.progress import advancing_bar
from gendistill.sampling.load import gan_folder

EMBEDDED = "assets/emoji/"
FILE_NAME = "evaluation.json"
STATISTICS = ".npz"
ENDINGS = (*SHARD_SUFFIXES, ".zip", ".parquet", STATISTICS)
OF_A_MODEL = ("model_index.json", "gendistill.json", "pytorch_lora_weights.safetensors")


@dataclass(frozen=True)
class SetEvaluation:
    """A result, and what to know before trusting it."""

    evaluation: Evaluation
    warnings: list[str]
    files: list[Path] = field(default_factory=list)

    def table(self) -> Group:
        """For the terminal: the scores, and how they were made."""
        return Group(self.evaluation.table(), Text(self.evaluation.protocol.describe()))

    def to_json(self) -> str:
        return self.evaluation.to_json()


def is_picture_set(path: str) -> bool:
    """Whether a path means pictures or their statistics, rather than a model."""
    here = Path(asset_path(path)).expanduser()
    if here.is_dir():
        return not any((here / name).is_file() for name in OF_A_MODEL) and not student_folders(here) and not gan_folder(here)
    return here.name.lower().endswith(ENDINGS) or path.startswith("hf://")


def evaluate_pictures(pictures: str, config: EvaluationConfig) -> SetEvaluation:
    """Scores of pictures against real ones; features are extracted once and kept.

    Without intervals, and with `fd` alone, memory does not grow with the number of pictures.

    Args:
        pictures: a folder, `.zip`, tar or WebDataset shards, a dataset; or `.npz` statistics, of which only the Fréchet
            distance can be had. The extractor is `inception` where `config` names none, or `emoji` for the embedded pictures.

    Raises:
        ValueError: a set cannot be read, or a metric or network cannot be had.
    """
    device, cache = usable_device(config.device), Path(config.cache)
    network = _load_extractor(config.reference, config.extractor, config.resize, device)
    asked = _asked(pictures, config)
    needs = frozenset().union(*(METRICS[name].needs for name in asked))
    scorer = load_scorer(config.clip or TINY_CLIP, device) if needs & {Need.CLIP, Need.CLIP_REFERENCE} else None
    of_prompts = bool(needs & {Need.CLIP, Need.PROMPTS})
    ours_by = Extraction(network, scorer, cache)
    theirs_by = Extraction(network, scorer if Need.CLIP_REFERENCE in needs else None, cache)
    in_memory = config.intervals or asked != ("fd",)
    with advancing_bar("extracting features") as progress:
        theirs = _read(config.reference, None, theirs_by, in_memory, progress)
        ours = _read(pictures, config.caption, ours_by, in_memory, progress)
    fd = metric_name(network)
    if ours.pictures is None:
        if asked != ("fd",):
            raise ValueError(f"metrics: got {', '.join(asked)} for saved statistics {pictures}, takes fd alone.")
        scores = Scores({fd: frechet_distance(ours.statistics, theirs.statistics)})
    else:
        scores = measure(
            _with_prompts(pictures, ours, scorer) if of_prompts else ours.pictures,
            theirs.reference,
            asked,
            fd=fd,
            clip=scorer.name if scorer else None,
            intervals=config.intervals,
            seed=config.seed,
            skip_missing=config.metrics is None,
        )
    protocol = EvaluationProtocol(
        metric=fd,
        num_samples=ours.statistics.count or 0,
        reference=name_of(config.reference),
        reference_count=theirs.statistics.count,
        seed=config.seed if config.intervals else None,
        prompts=f"their own captions ({config.caption or 'the default field'})" if of_prompts else None,
        guidance_scale=None,
        num_inference_steps=None,
        reference_hash=theirs.seen.contents if theirs.seen else None,
        **networks_of(network, scorer),
    )
    found = Evaluation(name_of(pictures), "", 0, scores.values, None, protocol, scores.intervals)
    files = []
    if config.out is not None:
        files = [make_folder(config.out) / FILE_NAME]
        with written_aside(files[0]) as aside:
            aside.write_text(found.to_json())
    return SetEvaluation(found, _warnings(network.dim, {pictures: ours, config.reference: theirs}), files)


def _asked(pictures: str, config: EvaluationConfig) -> tuple[str, ...]:
    """The metrics that were asked for; else those that can be had of the two, of prompts too where a CLIP model is named."""
    if config.metrics is not None:
        return chosen_metrics(config.metrics)
    if STATISTICS in (Path(pictures).suffix, Path(config.reference).suffix):
        return ("fd",)
    unusual = {Need.REPEATED_PROMPTS} if config.clip else {Need.REPEATED_PROMPTS, Need.CLIP}
    return tuple(name for name in default_metrics() if not METRICS[name].needs & unusual)


def _load_extractor(embedded: str, extractor: str | None, resize: str | None, device: str) -> FeatureExtractor:
    return load_extractor(extractor or ("emoji" if EMBEDDED in f"{asset_path(embedded)}/" else "inception"), device, resize)


def save_statistics(
    pictures: str,
    out: Path,
    *,
    extractor: str | None = None,
    resize: str | None = None,
    cache: str = CACHE,
    device: str | None = None,
) -> PictureSet:
    """Mean and covariance of the features of pictures to a `.npz` that clean-fid and pytorch-fid read too.

    Raises:
        ValueError: the pictures cannot be read or `out` is no `.npz`.
    """
    if out.suffix != STATISTICS:
        raise ValueError(f"out {out}: takes a {STATISTICS}")
    make_folder(out.parent)
    network = _load_extractor(pictures, extractor, resize, usable_device(device))
    with advancing_bar("extracting features") as progress:
        read = _read(pictures, None, Extraction(network, None, Path(cache)), False, progress)
    with written_aside(out) as aside:
        read.statistics.save(aside)
    return read


def _read(
    path: str, caption: CaptionOption, extraction: Extraction, in_memory: bool, progress: Callable[[int], None]
) -> PictureSet:
    if Path(path).suffix == STATISTICS:
        try:
            return PictureSet(GaussianStatistics.load(path, extraction.extractor.dim))
        except FileNotFoundError as error:
            raise ValueError(f"statistics {path}: there is no such file") from error
    source = open_source(path, caption)
    if isinstance(source, Prompts):
        raise ValueError(f"pictures {path}: is a prompt file; takes pictures")
    return read_pictures(source, extraction, square=False, in_memory=in_memory, progress=progress)


def _with_prompts(path: str, of: PictureSet, scorer: ClipScorer | None) -> SampleFeatures:
    """The pictures with their captions as their prompts."""
    assert of.pictures is not None
    assert of.seen is not None
    if not all(of.seen.captions):
        raise ValueError(f"prompts: {path} has pictures without a caption, CLIP score and CLIP-R take one a picture.")
    texts = scorer.embed_texts(of.seen.captions) if scorer else None
    return dataclasses.replace(of.pictures, prompts=of.seen.captions, text_embeddings=texts)


def _warnings(dim: int, sets: dict[str, PictureSet]) -> list[str]:
    found = []
    for path, of in sets.items():
        if of.statistics.count is not None and (warning := sample_size_warning(of.statistics.count, dim)):
            found.append(f"{name_of(path)}: {warning}")
        if of.seen is not None and of.seen.broken:
            found.append(f"{name_of(path)}: {of.seen.broken} pictures could not be decoded and are left out.")
    return found
