"""Extraction of the features and CLIP embeddings that scores are computed from, cached on disk by the images' source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gendistill.evaluation.feature_cache import cached_features
from gendistill.metrics.distances.clip_score import ClipScorer
from gendistill.metrics.features import feature_extractor
from gendistill.metrics.features.feature_extractor import FeatureExtractor
from gendistill.metrics.metric import SampleFeatures
from gendistill.runtime.stored_rows import StoredRows

Advance = Callable[[int], None] | None
Make = Callable[[], feature_extractor.Images]


@dataclass(frozen=True)
class Extraction:
    """The feature networks of images, and their cache.

    Attributes:
        scorer: CLIP model that embeds images and prompts; None omits the embeddings.
        cache: folder in which features are cached; None extracts anew each time.
    """

    extractor: FeatureExtractor
    scorer: ClipScorer | None = None
    cache: Path | None = None

    def extract(
        self,
        make: Make,
        prompts: Sequence[str] | None = None,
        *,
        source: Sequence[str] | None = None,
        progress: Advance = None,
    ) -> SampleFeatures:
        """Features of images, and CLIP embeddings with a scorer.

        Args:
            make: opens the images, in any form that `feature_extractor.extract` accepts; called once per network whose
                features are not cached.
            source: identifies the images in the cache; None caches nothing.
            progress: called repeatedly with the number of newly extracted images of the extractor.
        """
        features = self._all(self.extractor, make, source, progress).numpy()
        if self.scorer is None:
            return SampleFeatures(features, prompts)
        towers = self._all(self.scorer.image_extractor, make, source, None)
        texts = None if prompts is None else self.scorer.embed_texts(prompts)
        return SampleFeatures(features, prompts, F.normalize(towers, dim=1), texts)

    def rows(self, extractor: FeatureExtractor, make: Make, source: Sequence[str], progress: Advance = None) -> StoredRows:
        """Cached rows of features (D,) of one network, which are read from disk on access."""
        assert self.cache is not None
        advance = _increments(progress)
        rows = cached_features(self.cache / "features", source, extractor, make, progress=advance)
        advance(len(rows))
        return rows

    def _all(self, extractor: FeatureExtractor, make: Make, source: Sequence[str] | None, progress: Advance) -> Tensor:
        if source is None:
            return feature_extractor.extract(extractor, make(), progress=_increments(progress))
        rows = self.rows(extractor, make, source, progress)
        return rows.rows(range(len(rows)))["features"]


def _increments(progress: Advance) -> Callable[[int], None]:
    """A callback that converts totals to increments for `progress`."""
    before = 0

    def advance(done: int) -> None:
        nonlocal before
        if done > before and progress is not None:
            progress(done - before)
        before = max(before, done)

    return advance


def as_tensor(features: object) -> Tensor:
    """Features, as an array or a tensor, as a tensor."""
    return torch.as_tensor(np.asarray(features))
