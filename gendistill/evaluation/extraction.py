"""From pictures to what the scores are computed from, once: kept on disk by what the pictures are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gendistill.evaluation.feature_cache import cached_features
from gendistill.metrics.distances.clip_score import ClipScorer
from gendistill.metrics.features import feature_extractor as pictures_of
from gendistill.metrics.features.feature_extractor import FeatureExtractor
from gendistill.metrics.metric import SampleFeatures
from gendistill.runtime.stored_rows import StoredRows

Progress = Callable[[int], None]
Make = Callable[[], pictures_of.Pictures]


@dataclass(frozen=True)
class Extraction:
    """The networks that look at pictures.

    Attributes:
        scorer: of pictures and prompts; None leaves CLIP's embeddings out.
        cache: where features are kept; None extracts anew each time.
    """

    extractor: FeatureExtractor
    scorer: ClipScorer | None = None
    cache: Path | None = None

    def of(
        self,
        make: Make,
        prompts: Sequence[str] | None = None,
        *,
        source: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> SampleFeatures:
        """Features of pictures, and embeddings where there is a scorer.

        Args:
            make: opens the pictures, whatever `extract` takes; called once a network, and not at all where all is kept.
            source: what says which pictures these are; None keeps nothing.
            progress: called with the number of pictures that are done, more and more; once for each network's.
        """
        features = _array(self._kept(self.extractor, make, source, progress))
        if self.scorer is None:
            return SampleFeatures(features, prompts)
        towers = _array(self._kept(self.scorer.image_extractor, make, source, None))
        texts = None if prompts is None else self.scorer.embed_texts(prompts)
        return SampleFeatures(features, prompts, F.normalize(torch.from_numpy(towers), dim=1), texts)

    def blocks(
        self, make: Make, *, source: Sequence[str] | None = None, progress: Progress | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Features (n, D) of the extractor alone; where they are kept, memory does not grow with their number."""
        features = self._kept(self.extractor, make, source, progress)
        return (
            iter([features.numpy()]) if isinstance(features, Tensor) else (of["features"].numpy() for of in features.blocks())
        )

    def _kept(
        self, extractor: FeatureExtractor, make: Make, source: Sequence[str] | None, progress: Progress | None
    ) -> Tensor | StoredRows:
        advance = None if progress is None else _advancing(progress)
        if source is None or self.cache is None:
            return pictures_of.extract(extractor, make(), progress=advance)
        found = cached_features(self.cache / "features", source, extractor, make, progress=advance)
        if advance is not None:
            advance(len(found))
        return found


def _array(features: Tensor | StoredRows) -> NDArray[np.float32]:
    found = features if isinstance(features, Tensor) else features.rows(range(len(features)))["features"]
    return found.numpy()


def _advancing(progress: Progress) -> Progress:
    """From numbers done so far to numbers done since the last call."""
    before = 0

    def advance(done: int) -> None:
        nonlocal before
        if done > before:
            progress(done - before)
            before = done

    return advance


def as_tensor(features: object) -> Tensor:
    """Features of any kind as a tensor."""
    return torch.as_tensor(np.asarray(features))
