"""What decides which checkpoint of a GAN becomes the student: how far its pictures are from the real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gendistill.data.gan_batches import NoData, PictureData
from gendistill.gan.generator import Generator
from gendistill.methods.gan_codistillation import GanCodistillation
from gendistill.metrics.distances.frechet import frechet_distance
from gendistill.metrics.features.feature_extractor import FeatureExtractor, extract, metric_name
from gendistill.metrics.features.gaussian import GaussianStatistics, gaussian_statistics
from gendistill.run.validation import GRID_PICTURES, save_picture
from gendistill.runtime.random import PerSampleRandom, indices_of_step
from gendistill.samplers import image_grid, pictures_at_once, to_uint8
from gendistill.training.processes import gathered, share
from gendistill.training.state import Validation

MOST_REFERENCE = 4096  # pictures that a reference is made of


class GeneratorValidator:
    """Judges the student's average by the pictures of fixed noise, against real ones where there are any, else the teacher's.

    Args:
        num: pictures of a validation.
        device: where the generators are.
    """

    def __init__(
        self,
        method: GanCodistillation,
        data: PictureData | NoData,
        extractor: FeatureExtractor,
        samples: Path,
        *,
        num: int,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.method, self.extractor, self.samples, self.device = method, extractor, samples, device
        self.metric = metric_name(extractor)
        samples.mkdir(parents=True, exist_ok=True)
        teacher = method.networks.teacher
        self.inputs, self.labels = _asked(teacher, data, num, 1_000 + seed)
        theirs = torch.cat(list(self._painted(teacher, self.inputs, self.labels, range(num))))
        self.reference = self._reference(data, teacher, seed)
        self.teacher_diversity = diversity(extract(extractor, theirs), self.labels)
        save_picture(image_grid(theirs[:GRID_PICTURES].float() / 255), samples / "teacher.png")

    def __call__(self, step: int) -> Validation:
        """The distance of the average's pictures, and how diverse they are; processes share the painting."""
        average = self.method.networks.average
        num = len(self.inputs)
        pictures = gathered(torch.cat(list(self._painted(average, self.inputs, self.labels, share(num)))), num)
        features = extract(self.extractor, pictures)
        distance = frechet_distance(gaussian_statistics(features), self.reference)
        relative = diversity(features, self.labels) / self.teacher_diversity if self.teacher_diversity else 1.0
        if step:
            self.method.saw_diversity(relative)
        save_picture(image_grid(pictures[:GRID_PICTURES].float() / 255), self.samples / f"step-{step:06d}.png")
        return Validation(distance, {self.metric: distance, "diversity": relative})

    @torch.no_grad()
    def _painted(
        self, generator: Generator, inputs: Tensor, labels: Tensor | None, numbers: range | list[int]
    ) -> Iterator[Tensor]:
        """Batches uint8 (B, 3, H, W) on the CPU, of those of `inputs` and `labels` that have these numbers."""
        training = generator.network.training
        generator.network.eval()
        size = pictures_at_once(max(generator.spec.output_shape[1:]))
        for rows in torch.tensor(list(numbers)).split(size):
            classes = None if labels is None else labels[rows].to(self.device)
            yield in_colour(generator(inputs[rows].to(self.device), classes))
        generator.network.train(training)

    def _reference(self, data: PictureData | NoData, teacher: Generator, seed: int) -> GaussianStatistics:
        if isinstance(data, PictureData) and teacher.spec.kind == "noise":
            rows = indices_of_step(seed, 0, min(len(data), MOST_REFERENCE), len(data))
            pictures = data.cache.rows(rows)["pictures"]
            if teacher.spec.output_shape[0] == 1:
                pictures = pictures.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1)
            return gaussian_statistics(extract(self.extractor, pictures))
        num = max(len(self.inputs), 1024)
        pictures = torch.cat(list(self._painted(teacher, *_asked(teacher, data, num, 2_000 + seed), range(num))))
        return gaussian_statistics(extract(self.extractor, pictures))


def _asked(teacher: Generator, data: PictureData | NoData, num: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """Noise or pictures (N, ...) and classes (N,), by frequency where there are data."""
    random, spec = PerSampleRandom(seed, 0, 0, num), teacher.spec
    batch = data.batch(data.rows_of_step(seed, 0, num), random, "cpu")
    inputs = random.normal(spec.input_shape) if batch.inputs is None else batch.inputs
    labels = batch.labels if batch.labels is not None or not spec.num_classes else torch.arange(num) % spec.num_classes
    return inputs, labels


def in_colour(pictures: Tensor) -> Tensor:
    """Pictures (B, C, H, W) in [-1, 1] as uint8 (B, 3, H, W) on the CPU; grey ones have three equal channels."""
    shown = to_uint8(pictures.float() / 2 + 0.5).cpu()
    return shown.expand(-1, 3, -1, -1) if shown.shape[1] == 1 else shown[:, :3]


def diversity(features: Tensor, labels: Tensor | None) -> float:
    """The mean distance between two pictures' features (N, D), of one class where there are classes (N,) with two of them."""
    distances = torch.cdist(features, features)
    same = torch.ones_like(distances, dtype=torch.bool) if labels is None else labels[:, None] == labels
    same.fill_diagonal_(False)
    if not same.any():
        return diversity(features, None)
    return distances[same].mean().item()
