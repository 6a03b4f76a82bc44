"""Validation of GANs: the distance of generated images to real images selects the checkpoint of the student."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gendistill.data.gan_batches import ImageData, NoData
from gendistill.gan.generator import Generator
from gendistill.methods.gan_codistillation import GanCodistillation
from gendistill.metrics.distances.frechet import frechet_distance
from gendistill.metrics.features.feature_extractor import FeatureExtractor, extract, metric_name, network_name
from gendistill.metrics.features.gaussian import GaussianStatistics, gaussian_statistics
from gendistill.run.validation import GRID_IMAGES, save_image_grid
from gendistill.run.watch import diversity
from gendistill.runtime.progress import advancing_bar
from gendistill.runtime.random import PerSampleRandom, indices_of_step
from gendistill.samplers import image_grid, images_at_once, to_uint8
from gendistill.training.processes import gathered, items_of_process
from gendistill.training.state import Validation

MAX_REFERENCE = 4096  # images in the reference statistics


class GeneratorValidator:
    """Validates the EMA of the student by images from fixed noise, against real images, or without data against the teacher's.

    An image-to-image student is validated by the absolute error to the teacher's images of the same inputs, in [0, 1].

    Args:
        num: number of images in a validation.
        device: device of the generators.
    """

    def __init__(
        self,
        method: GanCodistillation,
        data: ImageData | NoData,
        extractor: FeatureExtractor,
        samples: Path,
        *,
        num: int,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.method, self.extractor, self.samples, self.device = method, extractor, samples, device
        self.metric, self.network = metric_name(extractor), network_name(extractor)
        samples.mkdir(parents=True, exist_ok=True)
        teacher = method.networks.teacher
        self.inputs, self.labels, paired = _fixed_inputs(teacher, data, num, 1_000 + seed)
        teacher_images = self._of_teacher(teacher, self.inputs, self.labels, paired)
        self.reference = self._reference(data, teacher, seed)
        self.targets = teacher_images if teacher.spec.kind == "image" else None
        self.teacher_diversity = diversity(extract(extractor, teacher_images), self.labels)
        save_image_grid(image_grid(teacher_images[:GRID_IMAGES].float() / 255), samples / "teacher.png")

    def __call__(self, step: int) -> Validation:
        """The distance of the EMA's images, and their diversity relative to the teacher's; all processes generate."""
        average = self.method.networks.average
        num = len(self.inputs)
        images = gathered(torch.cat(list(self._generated(average, self.inputs, self.labels, items_of_process(num)))), num)
        features = extract(self.extractor, images)
        distance = frechet_distance(gaussian_statistics(features), self.reference)
        relative = diversity(features, self.labels) / self.teacher_diversity if self.teacher_diversity else 1.0
        if step:
            self.method.report_diversity(relative)
        save_image_grid(image_grid(images[:GRID_IMAGES].float() / 255), self.samples / f"step-{step:06d}.png")
        figures = {self.metric: distance, "diversity": relative, "network": self.network}
        if self.targets is None:
            return Validation(distance, figures)
        error = (images.float() - self.targets.float()).abs().mean().item() / 255
        return Validation(error, {"l1_to_teacher": error, **figures})

    @torch.no_grad()
    def _generated(
        self, generator: Generator, inputs: Tensor, labels: Tensor | None, numbers: range | list[int]
    ) -> Iterator[Tensor]:
        """Batches uint8 (B, 3, H, W) on the CPU of the images for the `inputs` and `labels` with the indices `numbers`."""
        training = generator.network.training
        generator.network.eval()
        size = images_at_once(max(generator.spec.output_shape[1:]))
        for rows in torch.tensor(list(numbers)).split(size):
            classes = None if labels is None else labels[rows].to(self.device)
            yield in_colour(generator(inputs[rows].to(self.device), classes))
        generator.network.train(training)

    def _reference(self, data: ImageData | NoData, teacher: Generator, seed: int) -> GaussianStatistics:
        if isinstance(data, ImageData) and teacher.spec.kind == "noise":
            rows = indices_of_step(seed, 0, min(len(data), MAX_REFERENCE), len(data))
            images = data.cache.rows(rows)["images"]
            if teacher.spec.output_shape[0] == 1:
                images = images.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1)
            return gaussian_statistics(extract(self.extractor, images))
        num = max(len(self.inputs), 1024)
        images = self._of_teacher(teacher, *_fixed_inputs(teacher, data, num, 2_000 + seed))
        return gaussian_statistics(extract(self.extractor, images))

    def _of_teacher(self, teacher: Generator, inputs: Tensor, labels: Tensor | None, paired: Tensor | None) -> Tensor:
        """The teacher's images uint8 (N, 3, H, W), from the cache where they are in it."""
        if paired is not None:
            return in_colour(paired)
        batches = []
        with advancing_bar("generating images of the teacher", len(inputs)) as advance:
            for batch in self._generated(teacher, inputs, labels, range(len(inputs))):
                batches.append(batch)
                advance(len(batch))
        return torch.cat(batches)


def _fixed_inputs(
    teacher: Generator, data: ImageData | NoData, num: int, seed: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Noise or input images (N, ...), classes (N,) with the frequencies of the data, or uniform without data, and the
    teacher's images if they are cached."""
    random, spec = PerSampleRandom(seed, 0, 0, num), teacher.spec
    batch = data.batch(data.rows_of_step(seed, 0, num), random, "cpu")
    inputs = random.normal(spec.input_shape) if batch.inputs is None else batch.inputs
    labels = batch.labels if batch.labels is not None or not spec.num_classes else torch.arange(num) % spec.num_classes
    return inputs, labels, batch.generated


def in_colour(images: Tensor) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] as uint8 (B, 3, H, W) on the CPU; grey images get three equal channels."""
    values = to_uint8(images.float() / 2 + 0.5).cpu()
    return values.expand(-1, 3, -1, -1) if values.shape[1] == 1 else values[:, :3]
