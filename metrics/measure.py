"""Every score of a set of pictures, each with its interval, from features that were extracted once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from gendistill.metrics.distances.clip_score import clip_scores
from gendistill.metrics.distances.frechet import (
    GaussianStatistics,
    frechet_distance,
    frechet_distance_infinity,
    gaussian_statistics,
)
from gendistill.metrics.distances.kernel import cmmd, kid_of_all
from gendistill.metrics.distances.manifold import ManifoldScores, manifold_scores
from gendistill.metrics.distances.retrieval import retrieval_precision
from gendistill.metrics.distances.uncertainty import (
    Interval,
    cmmd_interval,
    frechet_interval,
    kernel_interval,
    mean_interval,
    vendi_interval,
)
from gendistill.metrics.distances.vendi import intra_prompt_diversity, vendi_score
from gendistill.metrics.features.matrix import Features

NEIGHBOURS = 5  # of precision, recall, density and coverage, as Naeem et al. 2020


@dataclass(frozen=True)
class Pictures:
    """What the scores are computed from.

    Attributes:
        features: (N, D) of an extractor.
        prompts: (N) what each picture was asked for.
        images, texts: CLIP's embeddings (N, E) of pictures and prompts.
    """

    features: Features
    prompts: Sequence[str] | None = None
    images: Features | None = None
    texts: Features | None = None


@dataclass(frozen=True)
class Reference:
    """What pictures are held against: statistics alone, or the features (M, D) too; `images` CLIP's embeddings (M, E)."""

    statistics: GaussianStatistics
    features: Features | None = None
    images: Features | None = None


@dataclass
class Scores:
    """Values by name, their intervals, and what single pictures contribute.

    Attributes:
        per_picture: (N,) values whose mean is the score of that name: what a paired test takes.
        manifold: of precision, recall, density and coverage.
    """

    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    per_picture: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    manifold: ManifoldScores | None = None

    def add(self, name: str, value: float, interval: Interval | None = None) -> None:
        self.values[name] = float(value)
        if interval is not None:
            self.intervals[name] = (interval.low, interval.high)


@dataclass(frozen=True)
class Task:
    """A measurement in progress: what is asked, of what."""

    pictures: Pictures
    reference: Reference
    fd: str  # the name of the Fréchet distance: `fid`, `fd-emoji`
    clip: str | None  # the name of the CLIP model
    intervals: bool
    seed: int

    @property
    def real(self) -> Features:
        """Features of the reference.

        Raises:
            ValueError: there are only statistics.
        """
        if self.reference.features is None:
            raise ValueError("reference: got saved statistics, from which only the Fréchet distance follows; takes pictures.")
        return self.reference.features

    @property
    def embedded(self) -> tuple[Features, Features]:
        """CLIP's embeddings of pictures and prompts.

        Raises:
            ValueError: there are none.
        """
        if self.pictures.images is None or self.pictures.texts is None:
            raise ValueError("prompts: got pictures without any, CLIP score and CLIP-R take one a picture.")
        return self.pictures.images, self.pictures.texts


def _frechet(task: Task, scores: Scores) -> None:
    features, statistics = task.pictures.features, task.reference.statistics
    interval = frechet_interval(features, statistics, seed=task.seed) if task.intervals else None
    scores.add(task.fd, frechet_distance(gaussian_statistics(features), statistics), interval)


def _frechet_infinity(task: Task, scores: Scores) -> None:
    extrapolated = frechet_distance_infinity(task.pictures.features, task.reference.statistics, seed=task.seed)
    interval = frechet_interval(task.pictures.features, task.reference.statistics, seed=task.seed) if task.intervals else None
    scores.add(f"{task.fd}-infinity", extrapolated.value, interval)


def _kernel(task: Task, scores: Scores) -> None:
    features = task.pictures.features
    interval = kernel_interval(features, task.real, seed=task.seed) if task.intervals else None
    scores.add(kernel_name(task.fd), kid_of_all(features, task.real), interval)


def _manifold(task: Task, scores: Scores) -> None:
    found = scores.manifold = manifold_scores(task.pictures.features, task.real, NEIGHBOURS)
    parts = {"precision": found.precise, "recall": found.recalled, "density": found.densities, "coverage": found.covered}
    for name, values in parts.items():
        told = values.astype(np.float64)
        scores.add(name, told.mean(), mean_interval(told, seed=task.seed) if task.intervals else None)
    scores.per_picture |= {name: parts[name].astype(np.float64) for name in ("precision", "density")}


def _vendi(task: Task, scores: Scores) -> None:
    features = task.pictures.features
    interval = vendi_interval(features, seed=task.seed) if task.intervals else None
    scores.add("vendi", vendi_score(features), interval)


def _diversity(task: Task, scores: Scores) -> None:
    if task.pictures.prompts is None:
        raise ValueError("prompts: got pictures without any, the diversity within prompts takes one a picture.")
    of_prompts = np.array(list(intra_prompt_diversity(task.pictures.features, task.pictures.prompts).values()))
    if len(of_prompts) > 1:  # prompts that come once say nothing of it
        scores.add("diversity", of_prompts.mean(), mean_interval(of_prompts, seed=task.seed) if task.intervals else None)


def _clip_score(task: Task, scores: Scores) -> None:
    _mean(task, scores, "clip_score", clip_scores(*task.embedded).numpy().astype(np.float64))  # type: ignore[arg-type]


def _clip_r(task: Task, scores: Scores) -> None:
    images, texts = task.embedded
    if len(set(task.pictures.prompts or ())) > 1:
        assert task.pictures.prompts is not None
        _mean(task, scores, "clip_r", retrieval_precision(images, texts, task.pictures.prompts, seed=task.seed))


def _mean(task: Task, scores: Scores, name: str, values: NDArray[np.float64]) -> None:
    scores.add(name, values.mean(), mean_interval(values, seed=task.seed) if task.intervals else None)
    scores.per_picture[name] = values


def _cmmd(task: Task, scores: Scores) -> None:
    if task.pictures.images is None or task.reference.images is None:
        raise ValueError("cmmd: takes CLIP's embeddings of the pictures and of the reference, got none.")
    images, real = task.pictures.images, task.reference.images
    scores.add(f"cmmd-{task.clip}", cmmd(images, real), cmmd_interval(images, real, seed=task.seed) if task.intervals else None)


METRICS: dict[str, Callable[[Task, Scores], None]] = {
    "fd": _frechet,
    "fd_infinity": _frechet_infinity,
    "kid": _kernel,
    "prdc": _manifold,
    "vendi": _vendi,
    "diversity": _diversity,
    "clip_score": _clip_score,
    "clip_r": _clip_r,
    "cmmd": _cmmd,
}
OF_PROMPTS = ("diversity", "clip_score", "clip_r")
OF_FEATURES = ("kid", "prdc")  # of the reference, beside its statistics
OF_CLIP = ("clip_score", "clip_r", "cmmd")
ALIASES = {"fid": "fd", "fid_infinity": "fd_infinity", "kd": "kid", "precision": "prdc", "recall": "prdc"}
ALIASES |= {"density": "prdc", "coverage": "prdc", "prc": "prdc", "clip": "clip_score"}


def chosen_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Names of `METRICS` or their aliases, such as `fid`, as names of `METRICS`, each once.

    Raises:
        ValueError: a name is unknown.
    """
    chosen = []
    for name in names:
        plain = name.strip().lower().replace("-", "_")
        if (found := ALIASES.get(plain, plain)) not in METRICS:
            near = get_close_matches(plain, [*METRICS, *ALIASES], 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"metrics: got {name!r}, takes {', '.join(METRICS)}{hint}")
        chosen.append(found)
    return tuple(dict.fromkeys(chosen))


def kernel_name(fd: str) -> str:
    """Of the kernel distance that goes with a Fréchet distance: `kid` with `fid`, `kd-emoji` with `fd-emoji`."""
    return "kid" + fd.removeprefix("fid") if fd.startswith("fid") else "kd" + fd.removeprefix("fd")


def measure(
    pictures: Pictures,
    reference: Reference,
    metrics: Sequence[str],
    *,
    fd: str,
    clip: str | None = None,
    intervals: bool = True,
    seed: int = 0,
) -> Scores:
    """The scores named in `metrics` (see `METRICS`), with 95 % intervals where `intervals` asks for them.

    Args:
        fd: what the Fréchet distance is called with the extractor of the features (`metric_name`).
        clip: the name of the CLIP model that embedded the pictures.
        seed: of resampling.

    Raises:
        ValueError: a metric is unknown, or takes what is not there.
    """
    task, scores = Task(pictures, reference, fd, clip, intervals, seed), Scores()
    for name in chosen_metrics(metrics):
        METRICS[name](task, scores)
    return scores
