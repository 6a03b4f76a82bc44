"""Features as a finite float64 matrix (N, D), the input of every distance."""

import numpy as np
import torch
from numpy.typing import NDArray

Features = torch.Tensor | NDArray[np.floating]
Matrix = NDArray[np.float64]


def feature_matrix(features: Features, name: str = "features", min_rows: int = 2) -> Matrix:
    """`features` (N, D) of any float dtype and device as a float64 array on the CPU; a float64 array is not copied.

    Raises:
        ValueError: the features are not (N, D) with N >= `min_rows` and D >= 1, or not finite.
    """
    if isinstance(features, torch.Tensor):
        features = features.detach().to("cpu", torch.float64).numpy()
    matrix = np.asarray(features, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] < min_rows or matrix.shape[1] < 1:
        raise ValueError(f"{name}: got shape {matrix.shape}, expects (N, D) with N of at least {min_rows}.")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name}: got NaN or infinity, expects finite numbers.")
    return matrix


def feature_matrices(
    features: Features, reference: Features, names: tuple[str, str] = ("features", "reference"), min_rows: int = 2
) -> tuple[Matrix, Matrix]:
    """`feature_matrix` of both; raises ValueError also if they have different numbers of features."""
    a, b = feature_matrix(features, names[0], min_rows), feature_matrix(reference, names[1], min_rows)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{names[0]} and {names[1]}: got {a.shape[1]} and {b.shape[1]} features, expects equal numbers.")
    return a, b


def unit_rows(matrix: Matrix, name: str = "features") -> Matrix:
    """Each row of `matrix` (N, D) divided by its length; raises ValueError if a row is zero."""
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    if not length.all():
        raise ValueError(f"{name}: got a row of zeros (number {int(np.argmin(length))}), expects vectors with a direction.")
    return matrix / length


def gram_eigenvalues(rows: Matrix) -> Matrix:
    """Ascending eigenvalues (min(N, D),) of R^T R for `rows` R (N, D), which are those of R R^T."""
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    # torch is faster than numpy: 0.3 s against 0.7 s for 2048 features on one core.
    return torch.linalg.eigvalsh(torch.from_numpy(gram)).numpy()


def row_blocks(rows: int, columns: int, entries: int = 4_000_000) -> list[slice]:
    """Slices of `rows` rows, such that a block of one slice by `columns` has at most about `entries` numbers (32 MB)."""
    step = max(1, entries // max(columns, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def squared_distances(x: Matrix, y: Matrix) -> Matrix:
    """Squared distances (N, M); those below the rounding error of |x|^2 + |y|^2 - 2 x.y are of equal images, exactly 0."""
    norms = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)
    squared = norms - 2 * (x @ y.T)
    squared[squared < 1e-12 * norms] = 0
    return squared
