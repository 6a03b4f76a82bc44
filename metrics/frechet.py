"""The Fréchet distance between two sets of features, each seen as a Gaussian (Heusel et al. 2017, eq. 6)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class GaussianStatistics:
    """The first two moments of a set of features."""

    mean: NDArray[np.float64]  # (D,)
    covariance: NDArray[np.float64]  # (D, D), unbiased (divided by count - 1)
    count: int | None  # features that they were estimated from; None: the file did not say

    def save(self, path: str | Path) -> None:
        """Write an `.npz` with `mu` and `sigma`, as pytorch-fid does, and `count`."""
        arrays: dict[str, Any] = {"mu": self.mean, "sigma": self.covariance}
        if self.count is not None:
            arrays["count"] = np.int64(self.count)
        with Path(path).open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "GaussianStatistics":
        """Read an `.npz` of ours or of pytorch-fid's; nothing in it is unpickled.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: `mu` or `sigma` is missing, or their shapes are not (D,) and (D, D).
        """
        with np.load(path, allow_pickle=False) as arrays:
            if not {"mu", "sigma"} <= set(arrays.files):
                raise ValueError(f"{path}: got arrays {arrays.files}, takes 'mu' (D,) and 'sigma' (D, D).")
            mean, covariance = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
            count = int(arrays["count"]) if "count" in arrays.files else None
        if mean.ndim != 1 or covariance.shape != mean.shape * 2:
            raise ValueError(f"{path}: got mu {mean.shape} and sigma {covariance.shape}, takes (D,) and (D, D).")
        return cls(mean, covariance, count)


def gaussian_statistics(features: torch.Tensor | NDArray[np.floating]) -> GaussianStatistics:
    """Mean and unbiased covariance, in float64, of `features` (N, D).

    Raises:
        ValueError: not (N, D) with N >= 2, or not finite.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features: got shape {x.shape}, takes (N, D) with N of at least 2.")
    if not np.isfinite(x).all():
        raise ValueError("features: got NaN or infinity, takes finite numbers.")
    mean = x.mean(axis=0)
    centred = x - mean
    return GaussianStatistics(mean, centred.T @ centred / (len(x) - 1), len(x))


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Dowson & Landau 1982); at least 0, in float64.

    tr (S_a S_b)^(1/2) is the sum of the singular values of S_a^(1/2) S_b^(1/2). Taken so, nothing is lost by singular
    covariances (fewer pictures than features), which need an added epsilon where the matrix root of S_a S_b is taken.

    Raises:
        ValueError: the two have different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"statistics: got {len(a.mean)} and {len(b.mean)} features, takes equal numbers.")
    cross = _factor(a.covariance).T @ _factor(b.covariance)
    trace_of_root = np.linalg.svd(cross, compute_uv=False).sum()
    difference = a.mean - b.mean
    distance = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace_of_root
    return max(float(distance), 0.0)


def _factor(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """F (D, D) with F F^T = covariance: eigenvectors times roots of eigenvalues, rounding below zero cut off."""
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    return eigenvectors * np.sqrt(eigenvalues.clip(min=0))
