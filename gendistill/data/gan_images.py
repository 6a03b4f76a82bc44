"""Real pictures, brought to a generator's size once and kept on disk, with the numbers of their classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from gendistill.data.cache.building import HASHES, build_or_open
from gendistill.data.cache.row_cache import Part, Skipped, cache_key
from gendistill.data.data_config import DataConfig
from gendistill.data.encode import PART_SIZE, Progress, batched, decodable, tell_what_is_missing
from gendistill.data.gan_batches import NoData, PictureData, is_enlarging
from gendistill.data.images import fitted
from gendistill.data.samples import Entry, PictureSource
from gendistill.data.sources.source import Prompts, open_source
from gendistill.gan.generator import GeneratorSpec
from gendistill.runtime.hashing import HashMemo


def prepare_pictures(
    config: DataConfig, spec: GeneratorSpec, seed: int, progress: Progress | None = None
) -> PictureData | NoData:
    """What a GAN is distilled on: the pictures of `data.path`, or nothing but noise where it is not given.

    Raises:
        ValueError: there are prompts, a generator from pictures has none, or no picture shows one of the teacher's classes.
    """
    if config.prompts is not None:
        raise ValueError(f"data.prompts {config.prompts}: a GAN takes none; takes data.path, or nothing at all")
    if config.path is None:
        if spec.kind == "image":
            raise ValueError("data.path: a generator that paints from pictures takes pictures to paint from")
        return NoData()
    source = open_source(config.path, config.caption, seed, image_column=config.image_column, split=config.split)
    if isinstance(source, Prompts):
        raise ValueError(f"data.path {config.path} is a prompt file; takes pictures")
    _, height, width = spec.output_shape if spec.kind == "noise" or is_enlarging(spec) else spec.input_shape
    hashes = HashMemo(Path(config.cache) / HASHES)
    made_by = {
        "source": source.fingerprint(hashes),
        "caption": source.choice.describe(),
        "size": [height, width],
        "classes": list(spec.classes) or spec.num_classes,
    }
    hashes.keep()

    def parts() -> Iterator[Callable[[], Part]]:
        for entries in batched(source.entries(), PART_SIZE):
            yield partial(_part, source, entries, (height, width), spec, progress)

    provenance = {**made_by, "described": source.describe()}
    cache = build_or_open(Path(config.cache), cache_key(**made_by), provenance, parts)
    tell_what_is_missing(cache, source)
    return PictureData(cache, spec)


def _part(
    source: PictureSource, entries: list[Entry], size: tuple[int, int], spec: GeneratorSpec, progress: Progress | None
) -> Part:
    pictures, labels = [], []
    skipped: list[Skipped] = []
    for entry, sample in decodable(source, entries, skipped):
        try:
            labels.append(spec.class_of(sample.caption) if spec.num_classes else 0)
        except ValueError as error:
            skipped.append(Skipped(entry.key, str(error), broken=False))
            continue
        pictures.append(torch.from_numpy(np.array(fitted(sample.picture, *size))).permute(2, 0, 1))
    if progress:
        progress(len(entries))
    if not pictures:
        return Part({}, skipped)
    return Part({"pictures": {"pictures": torch.stack(pictures), "labels": torch.tensor(labels)}}, skipped)
