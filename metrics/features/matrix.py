"""Features as every distance takes them: one finite float64 matrix (N, D)."""

import numpy as np
import torch
from numpy.typing import NDArray

Features = torch.Tensor | NDArray[np.floating]
Matrix = NDArray[np.float64]


def feature_matrix(features: Features, name: str = "features", at_least: int = 2) -> Matrix:
    """`features` (N, D) of any float type and device as a float64 array on the CPU; a float64 array is not copied.

    Raises:
        ValueError: not (N, D) with N of at least `at_least` and D of at least 1, or not finite.
    """
    if isinstance(features, torch.Tensor):
        features = features.detach().to("cpu", torch.float64).numpy()
    matrix = np.asarray(features, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] < at_least or matrix.shape[1] < 1:
        raise ValueError(f"{name}: got shape {matrix.shape}, expects (N, D) with N of at least {at_least}.")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name}: got NaN or infinity, expects finite numbers.")
    return matrix


def feature_matrices(
    features: Features, reference: Features, names: tuple[str, str] = ("features", "reference"), at_least: int = 2
) -> tuple[Matrix, Matrix]:
    """Both as `feature_matrix`; raises ValueError also where they have different numbers of features."""
    a, b = feature_matrix(features, names[0], at_least), feature_matrix(reference, names[1], at_least)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{names[0]} and {names[1]}: got {a.shape[1]} and {b.shape[1]} features, expects equal numbers.")
    return a, b


def unit_rows(matrix: Matrix, name: str = "features") -> Matrix:
    """Each row of `matrix` (N, D) divided by its length; raises ValueError where one is zero."""
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    if not length.all():
        raise ValueError(f"{name}: got a row of zeros (number {int(np.argmin(length))}), expects vectors with a direction.")
    return matrix / length


def gram_eigenvalues(rows: Matrix) -> Matrix:
    """Eigenvalues (min(N, D),), rising, of R^T R, the same as those of R R^T, for `rows` R (N, D)."""
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    # torch's eigenvalues come sooner than numpy's: 0.3 s against 0.7 s of 2048 features on one core.
    return torch.linalg.eigvalsh(torch.from_numpy(gram)).numpy()


def row_blocks(rows: int, columns: int, entries: int = 4_000_000) -> list[slice]:
    """Slices of `rows` such that a block of each by `columns` holds about `entries` numbers (32 MB) at most."""
    step = max(1, entries // max(columns, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
