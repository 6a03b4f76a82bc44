"""Bins of feature space: the k-means cells of the reference's features."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from gendistill.metrics.features.matrix import Features


def fit_bins(reference: Features, bins: int = 50, seed: int = 0) -> NDArray[np.float32]:
    """Centres (K, D) of k-means over features (M, D), started by k-means++; K is `bins` or, where cells ran empty, fewer.

    Raises:
        ValueError: fewer pictures than bins, or fewer than 2 bins.
    """
    x = np.asarray(reference, dtype=np.float32)
    if not 2 <= bins <= len(x):
        raise ValueError(f"bins: got {bins}, takes from 2 to the number of reference pictures ({len(x)}).")
    centres, cells = kmeans2(x, bins, iter=30, minit="++", missing="warn", seed=seed)
    return centres[np.unique(cells)].astype(np.float32)


def cells_of(features: Features, centres: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The nearest centre of each row (N,), and the distance to it."""
    x, c = torch.as_tensor(features).float(), torch.from_numpy(centres)
    nearest = [torch.cdist(block, c).min(dim=1) for block in x.split(4096)]
    return torch.cat([n.indices for n in nearest]).numpy(), torch.cat([n.values for n in nearest]).numpy()
