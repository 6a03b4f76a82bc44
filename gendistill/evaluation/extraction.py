"""From images to what the scores are computed from, once: kept on disk by what the images are."""

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
from gendistill.metrics.features import feature_extractor as images_of
from gendistill.metrics.features.feature_extractor import FeatureExtractor
from gendistill.metrics.metric import SampleFeatures
from gendistill.runtime.stored_rows import StoredRows

Advance = Callable[[int], None] | None
Make = Callable[[], images_of.Images]


@dataclass(frozen=True)
class Extraction:
    """The networks that look at images.

    Attributes:
        scorer: of images and prompts; None leaves CLIP's embeddings out.
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
        progress: Advance = None,
    ) -> SampleFeatures:
        """Features of images, and embeddings where there is a scorer.

        Args:
            make: opens the images, whatever `extract` takes; called once a network, and not at all where all is kept.
            source: what says which images these are; None keeps nothing.
            progress: called with the number of images that are done, more and more; once for each network's.
        """
        features = self._all(self.extractor, make, source, progress).numpy()
        if self.scorer is None:
            return SampleFeatures(features, prompts)
        towers = self._all(self.scorer.image_extractor, make, source, None)
        texts = None if prompts is None else self.scorer.embed_texts(prompts)
        return SampleFeatures(features, prompts, F.normalize(towers, dim=1), texts)

    def rows(self, extractor: FeatureExtractor, make: Make, source: Sequence[str], progress: Advance = None) -> StoredRows:
        """Features (D,) of one network in the cache, row by row: memory does not grow with their number."""
        assert self.cache is not None
        advance = _advancing(progress)
        found = cached_features(self.cache / "features", source, extractor, make, progress=advance)
        advance(len(found))
        return found

    def _all(self, extractor: FeatureExtractor, make: Make, source: Sequence[str] | None, progress: Advance) -> Tensor:
        if source is None:
            return images_of.extract(extractor, make(), progress=_advancing(progress))
        rows = self.rows(extractor, make, source, progress)
        return rows.rows(range(len(rows)))["features"]


def _advancing(progress: Advance) -> Callable[[int], None]:
    """From numbers done so far to numbers done since the last call."""
    before = 0

    def advance(done: int) -> None:
        nonlocal before
        if done > before and progress is not None:
            progress(done - before)
        before = max(before, done)

    return advance


def as_tensor(features: object) -> Tensor:
    """Features of any kind as a tensor."""
    return torch.as_tensor(np.asarray(features))
