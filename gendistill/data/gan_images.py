"""Real images, resized to the size of a generator once and kept on disk, with their class numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gendistill.data.cached import ImageRowMaker, Progress, cached_images, image_source
from gendistill.data.data_config import DataConfig
from gendistill.data.gan_batches import ImageData, NoData, is_enlarging
from gendistill.data.images import fitted
from gendistill.data.samples import Entry, ImageSource
from gendistill.gan.generator import GeneratorSpec
from gendistill.runtime.store import Skipped, StoredPart


def prepare_images(config: DataConfig, spec: GeneratorSpec, seed: int, progress: Progress | None = None) -> ImageData | NoData:
    """The training data of a GAN: the images of `data.path`, or noise alone without a path.

    Raises:
        ValueError: `data.prompts` is set, an image-to-image generator has no images, or no image has a class of the teacher.
    """
    if config.prompts is not None:
        raise ValueError(f"data.prompts {config.prompts}: a GAN has no prompts; expects data.path, or neither of them")
    if config.path is None:
        if spec.kind == "image":
            raise ValueError("data.path: not set; an image-to-image generator expects input images")
        return NoData()
    source = image_source(config, seed, spec.knows if spec.num_classes else None)
    _, height, width = spec.output_shape if spec.kind == "noise" or is_enlarging(spec) else spec.input_shape
    maker = FittedImages(source, (height, width), spec)
    return ImageData(cached_images(config.cache, maker, progress), spec)


@dataclass(frozen=True)
class FittedImages(ImageRowMaker):
    """Images, resized and cropped to `size` (height, width), with their classes of a generator."""

    source: ImageSource
    size: tuple[int, int]
    spec: GeneratorSpec

    def make(self, items: list[Entry], progress: Progress | None) -> StoredPart:
        images, labels = [], []
        skipped: list[Skipped] = []
        for entry, sample in self.source.decoded(items, skipped):
            try:
                labels.append(self.spec.class_of(sample.caption) if self.spec.num_classes else 0)
            except ValueError as error:
                skipped.append(Skipped(entry.key, str(error), broken=False))
                continue
            images.append(torch.from_numpy(np.array(fitted(sample.image, *self.size))).permute(2, 0, 1))
        if progress:
            progress(len(items))
        if not images:
            return StoredPart({}, skipped)
        return StoredPart({"images": {"images": torch.stack(images), "labels": torch.tensor(labels)}}, skipped)
