"""Evaluation of stored sets of images, from any model, against real ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import ZipFile

from rich.console import Group
from rich.text import Text

from gendistill.assets import asset_path
from gendistill.data.images import SUFFIXES
from gendistill.data.sources.captions import CaptionOption
from gendistill.data.sources.metadata import LISTS
from gendistill.data.sources.patterns import TABLES
from gendistill.data.sources.shards import SHARD_SUFFIXES
from gendistill.data.sources.source import Prompts, open_source
from gendistill.evaluation.default_extractor import are_embedded_images
from gendistill.evaluation.evaluate_student import student_folders
from gendistill.evaluation.evaluation_config import CACHE, EvaluationConfig
from gendistill.evaluation.evaluator import TINY_CLIP, name_of, networks_of
from gendistill.evaluation.extraction import Extraction
from gendistill.evaluation.reference import ImageSet, read_images
from gendistill.evaluation.report_folder import report_folder
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
from gendistill.runtime.files import SIGNATURE, atomic_write, is_signed, require_new
from gendistill.runtime.notebook import table_html
from gendistill.runtime.progress import advancing_bar
from gendistill.sampling.load import gan_folder

FILE_NAME = "evaluation.json"
STATISTICS = ".npz"
ENDINGS = (*SHARD_SUFFIXES, *SUFFIXES, *TABLES, *LISTS, ".zip", STATISTICS)
MODEL_FILES = ("model_index.json", "gendistill.json", "pytorch_lora_weights.safetensors")


@dataclass(frozen=True)
class SetEvaluation:
    """The evaluation of a set of images, and reasons to doubt it."""

    evaluation: Evaluation
    warnings: list[str]
    files: list[Path] = field(default_factory=list)

    def table(self) -> Group:
        """The scores and their protocol for the terminal."""
        return Group(self.evaluation.table(), Text(self.evaluation.protocol.describe()))

    def _repr_html_(self) -> str:
        return table_html(self.table(), self.files)

    def to_json(self) -> str:
        return self.evaluation.to_json()


def is_image_set(path: str) -> bool:
    """Whether a path refers to images or their statistics, rather than to a model."""
    local = Path(asset_path(path)).expanduser()
    if local.is_dir():
        return (
            not any((local / name).is_file() for name in MODEL_FILES) and not student_folders(local) and not gan_folder(local)
        )
    return local.name.lower().endswith(ENDINGS) or path.startswith("hf://")


def evaluate_images(images: str, config: EvaluationConfig) -> SetEvaluation:
    """Scores of images against real ones; features are cached.

    Without intervals, and with `fd` alone, memory does not grow with the number of images.

    Args:
        images: a folder, `.zip`, tar or WebDataset shards, a dataset; or `.npz` statistics, for which only the Fréchet
            distance can be computed. The default extractor is `inception`, or `emoji` for the embedded images.

    Raises:
        ValueError: a set cannot be read, a metric cannot be computed, or a network is not available.
    """
    device, cache = usable_device(config.device), Path(config.cache)
    network = _load_extractor(config.reference, config.extractor, config.resize, device)
    metrics = _metrics(images, config)
    needs = frozenset().union(*(METRICS[name].needs for name in metrics))
    scorer = load_scorer(config.clip or TINY_CLIP, device) if needs & {Need.CLIP, Need.CLIP_REFERENCE} else None
    needs_prompts = bool(needs & {Need.CLIP, Need.PROMPTS})
    extraction = Extraction(network, scorer, cache)
    reference_extraction = Extraction(network, scorer if Need.CLIP_REFERENCE in needs else None, cache)
    in_memory = config.intervals or metrics != ("fd",)
    with advancing_bar("extracting features") as progress:
        reference = _read(config.reference, None, reference_extraction, in_memory, progress)
        samples = _read(images, config.caption, extraction, in_memory, progress)
    fd = metric_name(network)
    if samples.images is None:
        if metrics != ("fd",):
            raise ValueError(f"metrics: got {', '.join(metrics)} for saved statistics {images}, expects fd alone.")
        scores = Scores({fd: frechet_distance(samples.statistics, reference.statistics)})
    else:
        scores = measure(
            _with_prompts(images, samples, scorer) if needs_prompts else samples.images,
            reference.reference,
            metrics,
            fd=fd,
            clip=scorer.name if scorer else None,
            intervals=config.intervals,
            seed=config.seed,
            skip_missing=config.metrics is None,
        )
    protocol = EvaluationProtocol(
        metric=fd,
        num_samples=samples.statistics.count or 0,
        reference=name_of(config.reference),
        reference_count=reference.statistics.count,
        seed=config.seed if config.intervals else None,
        prompts=f"their own captions ({config.caption or 'the default field'})" if needs_prompts else None,
        guidance_scale=None,
        num_inference_steps=None,
        reference_hash=reference.metadata.contents if reference.metadata else None,
        **networks_of(network, scorer),
    )
    evaluation = Evaluation(name_of(images), "", 0, scores.values, None, protocol, scores.intervals)
    files = []
    if config.out is not None:
        with report_folder(config.out, (FILE_NAME,)) as folder, atomic_write(folder / FILE_NAME) as temporary:
            temporary.write_text(evaluation.to_json())
        files = [folder / FILE_NAME]
    warnings = _warnings(network.dim, {images: samples, config.reference: reference})
    warnings += [f"not measured: {reason}" for reason in scores.left_out]
    return SetEvaluation(evaluation, warnings, files)


def _metrics(images: str, config: EvaluationConfig) -> tuple[str, ...]:
    """The requested metrics; by default those that both sets allow, including CLIP metrics if `config` names a CLIP model."""
    if config.metrics is not None:
        return chosen_metrics(config.metrics)
    if STATISTICS in (Path(images).suffix, Path(config.reference).suffix):
        return ("fd",)
    unmet = {Need.REPEATED_PROMPTS} if config.clip else {Need.REPEATED_PROMPTS, Need.CLIP}
    return tuple(name for name in default_metrics() if not METRICS[name].needs & unmet)


def _load_extractor(images: str, extractor: str | None, resize: str | None, device: str) -> FeatureExtractor:
    return load_extractor(extractor or ("emoji" if are_embedded_images(images) else "inception"), device, resize)


def save_statistics(
    images: str,
    out: Path,
    *,
    extractor: str | None = None,
    resize: str | None = None,
    cache: str = CACHE,
    device: str | None = None,
) -> ImageSet:
    """Write the mean and covariance of the images' features to a `.npz`, which clean-fid and pytorch-fid read too.

    Raises:
        ValueError: the images cannot be read, or `out` is not an `.npz`.
    """
    out = Path(out)
    if out.suffix != STATISTICS:
        raise ValueError(f"out {out}: expects a {STATISTICS}")
    out = out.expanduser()
    make_folder(out.parent)
    require_new(out, "out", is_signed)
    network = _load_extractor(images, extractor, resize, usable_device(device))
    with advancing_bar("extracting features") as progress:
        image_set = _read(images, None, Extraction(network, None, Path(cache)), False, progress)
    with atomic_write(out) as temporary:
        image_set.statistics.save(temporary)
        with ZipFile(temporary, "a") as archive:
            archive.comment = SIGNATURE
    return image_set


def _read(
    path: str, caption: CaptionOption, extraction: Extraction, in_memory: bool, progress: Callable[[int], None]
) -> ImageSet:
    if Path(path).suffix == STATISTICS:
        try:
            return ImageSet(GaussianStatistics.load(path, extraction.extractor.dim))
        except FileNotFoundError as error:
            raise ValueError(f"statistics {path}: there is no such file") from error
    source = open_source(path, caption)
    if isinstance(source, Prompts):
        raise ValueError(f"images {path} is a prompt file; expects images")
    return read_images(source, extraction, square=False, in_memory=in_memory, progress=progress)


def _with_prompts(path: str, image_set: ImageSet, scorer: ClipScorer | None) -> SampleFeatures:
    """The images with their captions as their prompts."""
    assert image_set.images is not None
    assert image_set.metadata is not None
    captions = image_set.metadata.captions
    if missing := captions.count(""):
        raise ValueError(
            f"prompts: {path} has images without a caption: {missing} of {len(captions)} ({image_set.metadata.seen}); "
            "CLIP score and CLIP-R expect one per image, or --caption FIELD."
        )
    texts = scorer.embed_texts(captions) if scorer else None
    return dataclasses.replace(image_set.images, prompts=captions, text_embeddings=texts)


def _warnings(dim: int, sets: dict[str, ImageSet]) -> list[str]:
    warnings = []
    for path, image_set in sets.items():
        count, metadata = image_set.statistics.count, image_set.metadata
        if count is not None and (warning := sample_size_warning(count, dim)):
            warnings.append(f"{name_of(path)}: {warning}")
        if metadata is not None and metadata.broken:
            warnings.append(f"{name_of(path)}: {metadata.broken} images could not be decoded and are left out.")
    return warnings
