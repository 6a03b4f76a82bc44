"""Sets of features that the tests of set metrics share."""

import numpy as np


def drawn_and_reference(count=120, reference_count=150, dim=24, seed=0):
    """Two overlapping, unequal sets of features, float64, with directions of unequal spread."""
    rng = np.random.default_rng(seed)
    spread = np.linspace(0.3, 2, dim)
    return rng.normal(0.2, 1.1, (count, dim)) * spread, rng.normal(size=(reference_count, dim)) * spread
