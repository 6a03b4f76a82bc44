"""Every metric by its name: the list from which evaluations, reports and help texts are made.

`register` adds a metric of another package, before it is requested.
"""

from collections.abc import Collection, Sequence
from difflib import get_close_matches

from gendistill.metrics.distances.clip_score import CLIP_SCORE
from gendistill.metrics.distances.cmmd import CMMD
from gendistill.metrics.distances.diversity import DIVERSITY
from gendistill.metrics.distances.frechet import FRECHET, FRECHET_INFINITY
from gendistill.metrics.distances.kernel import KERNEL_DISTANCE
from gendistill.metrics.distances.manifold import COVERAGE, DENSITY, PRECISION, RECALL
from gendistill.metrics.distances.retrieval import CLIP_R
from gendistill.metrics.distances.vendi import VENDI
from gendistill.metrics.metric import Metric
from gendistill.metrics.pairs.fidelity import FEATURE_COSINE, LPIPS, PSNR, SSIM

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        FRECHET,
        FRECHET_INFINITY,
        KERNEL_DISTANCE,
        PRECISION,
        RECALL,
        DENSITY,
        COVERAGE,
        VENDI,
        DIVERSITY,
        CLIP_SCORE,
        CLIP_R,
        CMMD,
        PSNR,
        SSIM,
        FEATURE_COSINE,
        LPIPS,
    )
}


def register(metric: Metric) -> None:
    """Add a metric of another package: `--metrics NAME` computes it, reports and help texts list it.

    Raises:
        ValueError: a metric of that name is registered already.
    """
    if metric.name in METRICS:
        raise ValueError(f"metric {metric.name}: is registered already; expects another name.")
    METRICS[metric.name] = metric


def default_metrics(*, quick: bool = False, of_pairs: bool = False) -> tuple[str, ...]:
    """Names of the metrics that an evaluation computes by default: those of sets of images, or with `of_pairs` of pairs."""
    levels = ("quick",) if quick else ("quick", "full")
    return tuple(name for name, metric in METRICS.items() if metric.default in levels and metric.of_pairs == of_pairs)


def chosen_metrics(names: Sequence[str], others: Collection[str] = ()) -> tuple[str, ...]:
    """Names of `METRICS` or `others` for the requested names or aliases, such as `fid` and `prdc`, without duplicates.

    Raises:
        ValueError: a name is unknown.
    """
    known = {name: [name] for name in others}
    for name, metric in METRICS.items():
        for alias in (name, *metric.aliases):
            known.setdefault(_plain(alias), []).append(name)
    chosen: list[str] = []
    for requested in names:
        if _plain(requested) not in known:
            near = get_close_matches(_plain(requested), known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"metrics: got {requested!r}, expects {', '.join([*METRICS, *others])}{hint}")
        chosen += known[_plain(requested)]
    return tuple(dict.fromkeys(chosen))


def metric_of(reported: str) -> Metric | None:
    """The metric of a reported name, such as `fid-clean` or `kd-emoji`; None if no registered metric has it."""
    candidates = [metric for metric in METRICS.values() if metric.reports(reported)]
    return max(candidates, key=lambda metric: (metric.name == reported, len(metric.ending)), default=None)


def higher_is_better(reported: str) -> bool:
    """Whether a higher score is better, by its reported name; True for a name of no registered metric."""
    metric = metric_of(reported)
    return metric is None or metric.higher_is_better


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_")
