import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from gendistill.networks.pruning.disjoint_sets import DisjointSets


def test_sets_are_merged_as_scipys():
    rng = np.random.default_rng(0)
    ours, theirs = DisjointSets(range(200)), DisjointSet(range(200))
    for a, b in rng.integers(0, 200, (150, 2)).tolist():
        ours.merge(a, b)
        theirs.merge(a, b)
    assert sorted(map(sorted, ours.subsets())) == sorted(map(sorted, theirs.subsets()))
    assert all(len({ours[element] for element in together}) == 1 for together in theirs.subsets())
    assert len({ours[element] for element in ours}) == theirs.n_subsets
