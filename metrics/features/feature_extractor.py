"""Extraction of the feature vectors from which every distance between sets of images is computed.

Threads resize the images one batch ahead of the network, so that memory does not grow with their number.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from gendistill.metrics.features.extractors import (
    EMOJI_FEATURES,
    EmojiFeatures,
    FeatureExtractor,
    InceptionFeatures,
    ModuleFeatures,
    metric_name,
    network_name,
)
from gendistill.metrics.features.load_extractor import load_extractor

__all__ = [
    "EMOJI_FEATURES",
    "EmojiFeatures",
    "FeatureExtractor",
    "Images",
    "InceptionFeatures",
    "ModuleFeatures",
    "extract",
    "feature_batches",
    "load_extractor",
    "metric_name",
    "network_name",
]

ImageLike = Image.Image | NDArray[np.uint8]
Images = torch.Tensor | Iterable[torch.Tensor] | Iterable[ImageLike]

BATCHES_AHEAD = 1  # batches prepared while the network runs; a batch of 64 at 299x299 has 69 MB
PIECE = 8  # images of a batch per task of a thread


def extract(
    extractor: FeatureExtractor,
    images: Images,
    batch_size: int = 64,
    progress: Callable[[int], object] | None = None,
    workers: int | None = None,
) -> torch.Tensor:
    """Features float32 (N, D) of `images` on the CPU; `feature_batches` does the same without all of them in memory.

    Raises:
        ValueError: as `feature_batches`, or there are no images.
    """
    features = list(feature_batches(extractor, images, batch_size, progress, workers))
    if not features:
        raise ValueError("images: got none, expects at least one image.")
    return torch.cat(features)


def feature_batches(
    extractor: FeatureExtractor,
    images: Images,
    batch_size: int = 64,
    progress: Callable[[int], object] | None = None,
    workers: int | None = None,
) -> Iterator[torch.Tensor]:
    """Features float32 (B, D) on the CPU, batch by batch, in the order of `images`.

    Args:
        images: uint8 (N, 3, H, W), which is split into batches; or an iterable of such batches, which are not split; or an
            iterable of RGB images of mixed sizes, Pillow's or uint8 arrays (H, W, 3).
        batch_size: images per call of the network.
        progress: called after each batch with the number of images done so far.
        workers: threads that prepare images; by default the number of processors.

    Raises:
        ValueError: the images have another type, or mixed sizes while the extractor does not resize.
    """
    waiting: deque[tuple[torch.Tensor | None, list[Future[torch.Tensor]]]] = deque()
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    buffers: list[torch.Tensor] = []  # reused between batches: allocating new memory takes longer than the resize
    done = 0
    try:
        for pieces in chain(_batches(images, batch_size), [None] * BATCHES_AHEAD):
            if pieces is not None:
                buffer = buffers.pop() if buffers else None
                slots = _slots(buffer, pieces)
                waiting.append((buffer, [pool.submit(_prepare, extractor, *pair) for pair in zip(pieces, slots, strict=True)]))
            if waiting and (pieces is None or len(waiting) > BATCHES_AHEAD):
                buffer, futures = waiting.popleft()
                prepared = _joined([future.result() for future in futures], buffer)
                features = extractor.features(prepared).cpu()
                buffers.append(prepared if buffer is None else buffer)
                done += len(features)
                if progress is not None:
                    progress(done)
                yield features
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(images: Images, batch_size: int) -> Iterator[list[torch.Tensor | ImageLike]]:
    """Split the images into batches, and each batch into pieces for the threads."""
    batch: list[torch.Tensor | ImageLike] = []
    for item in images.split(batch_size) if isinstance(images, torch.Tensor) else images:
        if isinstance(item, torch.Tensor):
            if item.dtype != torch.uint8 or item.ndim != 4 or item.shape[1] != 3:
                raise ValueError(f"images: got {item.dtype} {tuple(item.shape)}, expects torch.uint8 (B, 3, H, W).")
            if len(item):
                yield list(item.split(PIECE))
            continue
        if isinstance(item, Image.Image):
            if item.mode != "RGB":
                raise ValueError(f"images: got an image of mode {item.mode}, expects RGB.")
        elif not isinstance(item, np.ndarray) or item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3:
            description = f"{item.dtype} {item.shape}" if isinstance(item, np.ndarray) else type(item).__name__
            raise ValueError(f"images: got {description}, expects RGB images, uint8 arrays (H, W, 3) or tensors (B, 3, H, W).")
        batch.append(item)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _slots(buffer: torch.Tensor | None, pieces: list[torch.Tensor | ImageLike]) -> list[torch.Tensor | None]:
    """The part of a buffer for each piece of a batch, None if the batch does not fit."""
    lengths = [len(piece) if isinstance(piece, torch.Tensor) else 1 for piece in pieces]
    if buffer is None or len(buffer) < sum(lengths):
        return [None] * len(pieces)
    return list(buffer[: sum(lengths)].split(lengths))


def _prepare(extractor: FeatureExtractor, piece: torch.Tensor | ImageLike, slot: torch.Tensor | None) -> torch.Tensor:
    """The prepared images, in the slot if they fit into it."""
    if not isinstance(piece, torch.Tensor):
        piece = torch.from_numpy(np.array(piece)).permute(2, 0, 1)[None]
    prepared = extractor.prepare(piece)
    fits = slot is not None and (slot.shape, slot.dtype, slot.device) == (prepared.shape, prepared.dtype, prepared.device)
    return slot.copy_(prepared) if slot is not None and fits else prepared


def _joined(prepared: list[torch.Tensor], buffer: torch.Tensor | None) -> torch.Tensor:
    if buffer is not None and all(
        part.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr() for part in prepared
    ):
        return buffer[: sum(map(len, prepared))]
    sizes = sorted({tuple(tensor.shape[-2:]) for tensor in prepared})
    if len(sizes) > 1:
        (a_height, a_width), (b_height, b_width) = sizes[:2]
        raise ValueError(
            f"images: got {a_width}x{a_height} and {b_width}x{b_height} in a batch, expects equal sizes where resize is 'none'."
        )
    return prepared[0] if len(prepared) == 1 else torch.cat(prepared)
