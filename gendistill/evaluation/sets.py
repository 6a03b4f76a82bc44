"""Sets of pictures that lie somewhere, held against real ones: what anyone can evaluate, wherever the pictures are from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gendistill.data.sources.captions import CaptionOption
from gendistill.data.sources.shards import SHARD_SUFFIXES
from gendistill.data.sources.source import Prompts, open_source
from gendistill.evaluation.evaluate_student import student_folders
from gendistill.evaluation.extraction import Extraction, Progress
from gendistill.evaluation.judge import TINY_CLIP, name_of, versions
from gendistill.evaluation.reference import Seen, read_reference, read_statistics
from gendistill.metrics.distances.clip_score import load_scorer
from gendistill.metrics.distances.frechet import GaussianStatistics, frechet_distance
from gendistill.metrics.distances.uncertainty import sample_size_warning
from gendistill.metrics.evaluate import Evaluation, Protocol
from gendistill.metrics.features.feature_extractor import load_extractor, metric_name
from gendistill.metrics.measure import OF_CLIP, OF_PROMPTS, Pictures, Reference, Scores, chosen_metrics, measure
from gendistill.runtime.device import make_folder, usable_device
from gendistill.runtime.files import written_aside
from gendistill.runtime.progress import advancing_bar
from gendistill.sampling.load import gan_folder

EMBEDDED = "assets/emoji/"
METRICS = ("fd", "kid", "prdc", "vendi")
FILE_NAME = "evaluation.json"
STATISTICS = ".npz"
ENDINGS = (*SHARD_SUFFIXES, ".zip", ".parquet", STATISTICS)
OF_A_MODEL = ("model_index.json", "gendistill.json", "pytorch_lora_weights.safetensors")


@dataclass(frozen=True)
class PictureSet:
    """Pictures as numbers; without features where there are only statistics, or no more is asked for."""

    name: str
    statistics: GaussianStatistics
    pictures: Pictures | None = None
    seen: Seen | None = None

    @property
    def captions(self) -> list[str]:
        return self.seen.captions if self.seen else []


@dataclass(frozen=True)
class SetEvaluation:
    """A result, and what to know before trusting it."""

    evaluation: Evaluation
    warnings: list[str]


def is_picture_set(path: str) -> bool:
    """Whether a path means pictures or their statistics, rather than a model."""
    here = Path(path).expanduser()
    if here.is_dir():
        return not any((here / name).is_file() for name in OF_A_MODEL) and not student_folders(here) and not gan_folder(here)
    return here.name.lower().endswith(ENDINGS) or path.startswith("hf://")


def evaluate_pictures(
    pictures: str,
    *,
    reference: str,
    caption: CaptionOption = None,
    metrics: Sequence[str] | None = None,
    extractor: str | None = None,
    resize: str | None = None,
    clip: str | None = None,
    intervals: bool = True,
    seed: int = 0,
    cache: str = ".cache/gendistill",
    out: Path | None = None,
    device: str | None = None,
) -> SetEvaluation:
    """Scores of pictures against real ones; features are extracted once and kept.

    Args:
        pictures, reference: a folder, `.zip`, tar or WebDataset shards, a dataset; or `.npz` statistics, of which only the
            Fréchet distance can be had.
        caption: of `pictures`, the field that says what each was asked for.
        metrics: names of `gendistill.metrics.measure.METRICS`. Where None: of distances and diversity, those that can be
            had; with a `clip` those of prompts too.
        extractor, resize: what `load_extractor` takes; `inception`, or `emoji` for the embedded pictures.
        intervals: whether to bootstrap 95 % intervals. Without them, and with `fd` alone, memory does not grow with the
            number of pictures.
        out: folder to write evaluation.json to.

    Raises:
        ValueError: a set cannot be read, or a metric or network cannot be had.
    """
    device = usable_device(device)
    network = load_extractor(extractor or ("emoji" if EMBEDDED in reference else "inception"), device, resize)
    statistics_only = STATISTICS in (Path(pictures).suffix, Path(reference).suffix)
    usual = ("fd",) if statistics_only else (*METRICS, *(("clip_score", "clip_r") if clip else ()))
    asked = chosen_metrics(metrics or usual)
    scorer = load_scorer(clip or TINY_CLIP, device) if set(asked) & set(OF_CLIP) else None
    of_prompts, of_both = set(asked) & set(OF_PROMPTS), "cmmd" in asked
    ours_by = Extraction(network, scorer, Path(cache))
    theirs_by = Extraction(network, scorer if of_both else None, Path(cache))
    in_memory = intervals or asked != ("fd",)
    with advancing_bar("extracting features") as progress:
        theirs = _read(reference, None, theirs_by, in_memory, progress)
        ours = _read(pictures, caption, ours_by, in_memory, progress, with_prompts=bool(of_prompts))
    fd = metric_name(network)
    if ours.pictures is None:
        if asked != ("fd",):
            raise ValueError(f"metrics: got {', '.join(asked)} for saved statistics {pictures}, takes fd alone.")
        scores = Scores({fd: frechet_distance(ours.statistics, theirs.statistics)})
    else:
        real = theirs.pictures
        held_against = Reference(theirs.statistics, real.features if real else None, real.images if real else None)
        name = scorer.name if scorer else None
        scores = measure(ours.pictures, held_against, asked, fd=fd, clip=name, intervals=intervals, seed=seed)
    protocol = Protocol(
        metric=fd,
        extractor=network.name,
        weights_hash=network.weights_hash,
        resize=network.resize,
        num_samples=ours.statistics.count or 0,
        reference=theirs.name,
        reference_count=theirs.statistics.count,
        seed=seed if intervals else None,
        prompts=f"their own captions ({caption or 'the default field'})" if of_prompts else None,
        guidance_scale=None,
        num_inference_steps=None,
        versions=versions(),
        clip_model=scorer.name if scorer else None,
        clip_weights_hash=scorer.weights_hash if scorer else None,
        reference_hash=theirs.seen.contents if theirs.seen else None,
    )
    found = Evaluation(ours.name, "", 0, scores.values, None, protocol, scores.intervals)
    if out is not None:
        with written_aside(make_folder(out) / FILE_NAME) as aside:
            aside.write_text(found.to_json())
    return SetEvaluation(found, _warnings(network.dim, ours, theirs))


def save_statistics(
    pictures: str,
    out: Path,
    *,
    extractor: str | None = None,
    resize: str | None = None,
    cache: str = ".cache/gendistill",
    device: str | None = None,
) -> PictureSet:
    """Mean and covariance of the features of pictures to a `.npz` that clean-fid and pytorch-fid read too.

    Raises:
        ValueError: the pictures cannot be read or `out` is no `.npz`.
    """
    if out.suffix != STATISTICS:
        raise ValueError(f"out {out}: takes a {STATISTICS}")
    make_folder(out.parent)
    network = load_extractor(extractor or ("emoji" if EMBEDDED in pictures else "inception"), usable_device(device), resize)
    with advancing_bar("extracting features") as progress:
        read = _read(pictures, None, Extraction(network, None, Path(cache)), False, progress)
    with written_aside(out) as aside:
        read.statistics.save(aside)
    return read


def _read(
    path: str,
    caption: CaptionOption,
    extraction: Extraction,
    in_memory: bool,
    progress: Progress | None,
    *,
    with_prompts: bool = False,
) -> PictureSet:
    if Path(path).suffix == STATISTICS:
        try:
            return PictureSet(name_of(path), GaussianStatistics.load(path, extraction.extractor.dim))
        except FileNotFoundError as error:
            raise ValueError(f"statistics {path}: there is no such file") from error
    source = open_source(path, caption)
    if isinstance(source, Prompts):
        raise ValueError(f"pictures {path}: is a prompt file; takes pictures")
    if not in_memory:
        statistics, seen = read_statistics(source, extraction, progress=progress)
        return PictureSet(name_of(path), statistics, None, seen)
    real = read_reference(source, extraction, square=False, progress=progress)
    prompts, texts = None, None
    if with_prompts:
        if not all(real.seen.captions):
            raise ValueError(f"prompts: {path} has pictures without a caption, CLIP score and CLIP-R take one a picture.")
        prompts = real.seen.captions
        texts = extraction.scorer.embed_texts(prompts) if extraction.scorer else None
    return PictureSet(
        name_of(path),
        real.reference.statistics,
        Pictures(real.pictures.features, prompts, real.pictures.images, texts),
        real.seen,
    )


def _warnings(dim: int, ours: PictureSet, theirs: PictureSet) -> list[str]:
    found = []
    for of in (ours, theirs):
        if of.statistics.count is not None and (warning := sample_size_warning(of.statistics.count, dim)):
            found.append(f"{of.name}: {warning}")
        if of.seen is not None and of.seen.broken:
            found.append(f"{of.name}: {of.seen.broken} pictures could not be decoded and are left out.")
    return found
