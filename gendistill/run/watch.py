"""Watches of a training that may drift from its teacher: colour, saturation, and the diversity of images of one prompt."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from gendistill.evaluation.evaluator import Evaluator
from gendistill.methods.watch_config import WatchConfig
from gendistill.metrics.colour import mean_chroma, mean_colour
from gendistill.metrics.features.feature_extractor import FeatureExtractor, extract
from gendistill.runtime.files import written_alone

FIRST_SEED = 500_000  # after the evaluator's first seed; its other seeds are fewer


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of images of several prompts: mean colour in OKLab, mean chroma, mean distance of features of one prompt."""

    colour: tuple[float, ...]
    saturation: float
    diversity: float


def image_statistics(images: Tensor, extractor: FeatureExtractor, seeds: int) -> ImageStatistics:
    """Statistics of images uint8 (N, C, H, W), of which each `seeds` in a row have one prompt."""
    prompts = torch.arange(len(images)) // seeds
    spread = diversity(extract(extractor, images), prompts)
    return ImageStatistics(tuple(mean_colour(images).tolist()), mean_chroma(images), spread)


def diversity(features: Tensor, labels: Tensor | None) -> float:
    """The mean pairwise distance of image features (N, D); with classes (N,), of pairs within a class, if there are any."""
    distances = torch.cdist(features, features)
    same = torch.ones_like(distances, dtype=torch.bool) if labels is None else labels[:, None] == labels
    same.fill_diagonal_(False)
    if not same.any():
        return diversity(features, None)
    return distances[same].mean().item()


class DriftWatch:
    """Compares images of a student with the teacher's, of the same prompts and noise.

    A student that is beyond a bound at first, such as a teacher in one step, may come nearer: training ends where it is beyond
    the bound and farther than at first. What the teacher and the first student have is kept in a file.

    Args:
        file: a JSON file, which a resumed run reads.
        teacher: samples the teacher's images of an evaluator's prompts and seeds.
    """

    def __init__(self, config: WatchConfig, evaluator: Evaluator, file: Path, teacher: Callable[[Evaluator], Tensor]) -> None:
        prompts = watched_prompts(config, evaluator)
        seeds = [evaluator.seeds[0] + FIRST_SEED + number for number in range(len(prompts) * config.seeds)]
        self.config, self.file, self.sample_teacher = config, file, teacher
        self.evaluator = evaluator.with_prompts([prompt for prompt in prompts for _ in range(config.seeds)], seeds)
        stored = json.loads(file.read_text()) if file.is_file() else {}
        [stored] = broadcast_object_list([stored])  # other machines may not have the file
        self.known = {name: ImageStatistics(**values) for name, values in stored.items()}

    def __call__(self, images: Tensor) -> tuple[dict[str, float], str | None]:
        """Figures for the log, relative to the teacher, of a student's images of `evaluator`; a reason to end, if any."""
        extractor, seeds = self.evaluator.extractor, self.config.seeds
        student = image_statistics(images, extractor, seeds)
        if not self.known:
            teacher = image_statistics(self.sample_teacher(self.evaluator), extractor, seeds)
            self.known = {"teacher": teacher, "start": student}
            if PartialState().is_main_process:
                with written_alone(self.file) as temporary:
                    temporary.write_text(json.dumps({name: asdict(values) for name, values in self.known.items()}))
        figures, at_first = (drift(each, self.known["teacher"]) for each in (student, self.known["start"]))
        return figures, reason_to_end(self.config, figures, at_first)


def watched_prompts(config: WatchConfig, evaluator: Evaluator) -> list[str]:
    """The first prompts of an evaluator, without repetitions."""
    return list(dict.fromkeys(evaluator.prompts))[: config.prompts]


def drift(student: ImageStatistics, teacher: ImageStatistics) -> dict[str, float]:
    """The distance of the mean colours, and the ratios of saturation and diversity to the teacher's."""
    return {
        "colour_distance": math.dist(student.colour, teacher.colour),
        "saturation_ratio": student.saturation / max(teacher.saturation, 1e-6),
        "diversity_ratio": student.diversity / max(teacher.diversity, 1e-6),
    }


def reason_to_end(config: WatchConfig, now: dict[str, float], at_first: dict[str, float]) -> str | None:
    """A sentence on the first watch that is beyond its bound, and farther than at first."""

    def factor(ratios: dict[str, float]) -> float:
        ratio = max(ratios["saturation_ratio"], 1e-6)
        return max(ratio, 1 / ratio)

    ends = "; a smaller trainer.learning_rate, or an anchor such as align.weight, helps"
    if config.colour is not None and now["colour_distance"] > max(config.colour, at_first["colour_distance"]):
        return (
            f"the colours of the student's images drift by {now['colour_distance']:.2f} in OKLab from the teacher's, more than "
            f"watch.colour {config.colour:g}{ends}"
        )
    if config.saturation is not None and factor(now) > max(config.saturation, factor(at_first)):
        return (
            f"the saturation of the student's images is {now['saturation_ratio']:.2f} times the teacher's, beyond "
            f"watch.saturation {config.saturation:g}{ends}"
        )
    if config.diversity is not None and now["diversity_ratio"] < min(config.diversity, at_first["diversity_ratio"]):
        return (
            f"the student's images of one prompt differ {now['diversity_ratio']:.2f} times as much as the teacher's, less than "
            f"watch.diversity {config.diversity:g}{ends}"
        )
    return None
