import json

import numpy as np
import pytest
import torch
from torch import nn

from gendistill.metrics.features import feature_store
from gendistill.metrics.features.feature_extractor import ModuleFeatures, extract
from gendistill.metrics.features.feature_store import Features, FeatureStore


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "PART", 10)
    return FeatureStore(tmp_path / "store")


def pooled(offset=0.0, resize="clean"):
    """12 features: 2x2 means."""
    network = nn.Conv2d(3, 12, 1)
    torch.manual_seed(0)
    nn.init.normal_(network.weight)
    nn.init.constant_(network.bias, offset)
    return ModuleFeatures(network, "pooled", 8, resize)


def test_features_are_extracted_once_and_read_back_as_they_were(store, held_out):
    images, calls = held_out[0][:34], []

    def make():
        calls.append(1)
        return images.split(7)

    first = store.features("emoji", 34, extractor=pooled(), make=make)
    again = store.features("emoji", 34, extractor=pooled(), make=make)
    assert len(calls) == 1
    assert (len(again), again.dim) == (34, 12)
    np.testing.assert_array_equal(again.array(), first.array())
    np.testing.assert_allclose(first.array(), extract(pooled(), images.split(7)).numpy(), rtol=1e-5)


def test_rows_and_blocks_are_those_of_the_whole(store, held_out):
    features = store.features("emoji", extractor=pooled(), make=lambda: held_out[0][:34])
    whole = features.array()
    for rows in (1, 4, 10, 100):
        blocks = list(features.blocks(rows))
        assert max(map(len, blocks)) <= rows
        np.testing.assert_array_equal(np.concatenate(blocks), whole)
    indices = [33, 0, 9, 10, 0, 21]
    np.testing.assert_array_equal(features.rows(indices), whole[indices])
    np.testing.assert_array_equal(Features.of(whole).rows(indices), whole[indices])
    assert features.rows([]).shape == (0, 12)
    for wrong in ([34], [-1]):
        with pytest.raises(IndexError, match="takes 0 to 33"):
            features.rows(wrong)


def test_other_pictures_weights_or_resizing_are_other_features(store, held_out):
    images = held_out[0][:3]
    variants = [
        (("a", "bc"), pooled()),
        (("ab", "c"), pooled()),
        (("a", "bc"), pooled(offset=1)),
        (("a", "bc"), pooled(resize="legacy")),
    ]
    for source, extractor in variants:
        store.features(*source, extractor=extractor, make=lambda: images)
    assert len(list(store.folder.iterdir())) == len(variants)


def test_what_was_interrupted_leaves_no_features_and_goes_on_where_it_stopped(store, held_out):
    images, done = held_out[0][:34], []

    def until_the_power_fails():
        yield from images[:24].split(6)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.features("emoji", extractor=pooled(), make=until_the_power_fails)
    assert not list(store.folder.rglob("features.json"))
    kept = sorted(path.name for path in store.folder.rglob("*.npy"))
    assert kept in (["00000.npy"], ["00000.npy", "00001.npy"])
    seen = []

    class Counting(ModuleFeatures):
        def prepare(self, pictures):
            seen.extend(pictures)
            return super().prepare(pictures)

    counting = Counting(pooled().module, "pooled", 8)
    for make in (lambda: images.split(6), lambda: images):
        resumed = store.features("emoji", extractor=counting, make=make, progress=done.append)
        np.testing.assert_allclose(resumed.array(), extract(pooled(), images).numpy(), rtol=1e-5, atol=1e-6)
    assert len(seen) == 34 - 10 * len(kept)
    assert done[-1] == 34


def test_damaged_parts_are_extracted_again(store, held_out):
    images = held_out[0][:34]
    expected = store.features("emoji", extractor=pooled(), make=lambda: images).array()
    second = next(store.folder.rglob("00001.npy"))
    second.write_bytes(second.read_bytes()[:-1])
    np.testing.assert_allclose(store.features("emoji", extractor=pooled(), make=lambda: images).array(), expected, rtol=1e-5)
    next(store.folder.rglob("features.json")).write_text("{")
    np.testing.assert_allclose(store.features("emoji", extractor=pooled(), make=lambda: images).array(), expected, rtol=1e-5)


def test_the_protocol_lies_beside_the_features(store, held_out):
    extractor = pooled()
    store.features("fingerprint", extractor=extractor, make=lambda: held_out[0][:3])
    about = json.loads(next(store.folder.rglob("features.json")).read_text())
    assert about["source"] == ["fingerprint"]
    assert (about["extractor"], about["weights_hash"], about["resize"]) == (
        extractor.name,
        extractor.weights_hash,
        extractor.resize,
    )
    assert (about["count"], about["dim"]) == (3, 12)


def test_nothing_and_nowhere_are_one_sentence(store, tmp_path, held_out):
    with pytest.raises(ValueError, match="at least one picture"):
        store.features("none", extractor=pooled(), make=lambda: [])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        FeatureStore(tmp_path / "file").features("a", extractor=pooled(), make=lambda: held_out[0][:3])
    with pytest.raises(ValueError, match=r"takes \(N, D\)"):
        Features.of(np.zeros(3))
