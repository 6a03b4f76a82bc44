"""Mean and covariance of a set of features: estimated at once or block by block, saved and loaded."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gendistill.metrics.features.matrix import Features, Matrix, feature_matrix


@dataclass(frozen=True)
class GaussianStatistics:
    """Mean and covariance of a set of features."""

    mean: NDArray[np.float64]  # (D,)
    covariance: NDArray[np.float64]  # (D, D), unbiased (divided by count - 1)
    count: int | None  # number of images in the estimate; None: the file does not state it

    @property
    def dim(self) -> int:
        """D, the number of features per image."""
        return len(self.mean)

    def save(self, path: str | Path) -> None:
        """Write an `.npz` with `mu` and `sigma`, the format of clean-fid and pytorch-fid, and `count`."""
        arrays: dict[str, Any] = {"mu": self.mean, "sigma": self.covariance}
        if self.count is not None:
            arrays["count"] = np.int64(self.count)
        with Path(path).open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | Path, dim: int | None = None) -> "GaussianStatistics":
        """Read an `.npz` that `save`, clean-fid or pytorch-fid wrote; nothing in it is unpickled.

        `dim`: number of features of the extractor for the comparison; None accepts any.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is no `.npz`, `mu` or `sigma` is missing, pickled, not finite, not symmetric or not (D,)
                and (D, D), or D is not `dim`.
        """
        mean, covariance, count = _read(path)
        if mean.ndim != 1 or covariance.shape != mean.shape * 2:
            raise ValueError(f"{path}: got mu {mean.shape} and sigma {covariance.shape}, expects (D,) and (D, D).")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError(f"{path}: got NaN or infinity in mu or sigma, expects finite numbers.")
        if not np.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-6 * np.abs(covariance).max(initial=0)):
            raise ValueError(f"{path}: got a sigma that is not symmetric, expects a covariance (D, D).")
        if dim is not None and len(mean) != dim:
            raise ValueError(
                f"{path}: got statistics of {len(mean)} features, expects {dim}, the number of the extractor; compute them "
                f"again with this extractor."
            )
        return cls(mean, covariance, count)


def _read(path: str | Path) -> tuple[Matrix, Matrix, int | None]:
    with Path(path).open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path}: got a file that is no .npz, expects one with 'mu' (D,) and 'sigma' (D, D).")
    with np.load(path, allow_pickle=False) as arrays:
        names = sorted(arrays.files)
        if not {"mu", "sigma"} <= set(names):
            raise ValueError(f"{path}: got arrays {names}, expects 'mu' (D,) and 'sigma' (D, D).")
        try:
            mean, covariance = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
            count = int(arrays["count"]) if "count" in names else None
        except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: got arrays that are pickled, damaged or not numeric, expects numeric arrays.") from error
    return mean, covariance, count


class Moments:
    """Running estimate of mean and covariance from blocks of features; memory does not grow with their number.

    Blocks are merged about their own means (Chan, Golub & LeVeque 1979), which is accurate for features far from zero.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Matrix = np.zeros(0)
        self._scatter: Matrix = np.zeros((0, 0))  # sum of outer products of the deviations from the mean

    def add(self, features: Features) -> None:
        """Add a block (B, D), B >= 1; raises ValueError if D differs from that of earlier blocks, or if it is not finite."""
        block = feature_matrix(features, min_rows=1)
        dim = block.shape[1]
        if not self.count:
            self._mean, self._scatter = np.zeros(dim), np.zeros((dim, dim))
        if dim != len(self._mean):
            raise ValueError(f"features: got {dim} per image after blocks of {len(self._mean)}, expects {len(self._mean)}.")
        mean, total = block.mean(axis=0), self.count + len(block)
        shift = mean - self._mean
        deviations = np.vstack([block - mean, shift * (self.count * len(block) / total) ** 0.5])
        self._scatter += deviations.T @ deviations
        self._mean += shift * (len(block) / total)
        self.count = total

    def statistics(self) -> GaussianStatistics:
        """Statistics of all blocks so far; more may be added later. Raises ValueError for fewer than 2 images."""
        if self.count < 2:
            raise ValueError(f"features: got {self.count}, expects at least 2 for a covariance.")
        return GaussianStatistics(self._mean.copy(), self._scatter / (self.count - 1), self.count)


def gaussian_statistics(features: Features) -> GaussianStatistics:
    """Mean and unbiased covariance, in float64, of `features` (N, D).

    Raises:
        ValueError: the features are not (N, D) with N >= 2, or not finite.
    """
    moments = Moments()
    moments.add(features)
    return moments.statistics()
