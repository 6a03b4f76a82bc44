import pytest
import torch
from torch import nn

from gendistill.evaluation import feature_cache
from gendistill.evaluation.feature_cache import cached_features
from gendistill.metrics.features.feature_extractor import ModuleFeatures, extract

IMAGES = torch.randint(0, 256, (34, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def features(tmp_path, monkeypatch):
    """features(*source, extractor=..., make=...): `cached_features` with ten images per part."""
    monkeypatch.setattr(feature_cache, "PART", 10)

    def kept(*source, extractor, make, **options):
        return cached_features(tmp_path / "store", source, extractor, make, **options)

    return kept


def array(rows):
    return rows.rows(range(len(rows)))["features"]


def pooled(offset=0.0, resize="clean"):
    """12 features: 2x2 means."""
    network = nn.Conv2d(3, 12, 1)
    torch.manual_seed(0)
    nn.init.normal_(network.weight)
    nn.init.constant_(network.bias, offset)
    return ModuleFeatures(network, "pooled", 8, resize)


def test_features_are_extracted_once_and_read_back_as_they_were(features):
    calls = []

    def make():
        calls.append(1)
        return IMAGES.split(7)

    first = features("emoji", 34, extractor=pooled(), make=make)
    again = features("emoji", 34, extractor=pooled(), make=make)
    assert len(calls) == 1
    assert array(again).shape == (34, 12)
    assert torch.equal(array(again), array(first))
    assert torch.equal(array(first), extract(pooled(), IMAGES.split(7)))


def test_single_images_are_extracted_in_the_same_batches_as_without_a_cache(features):
    singles = [image.permute(1, 2, 0).numpy() for image in IMAGES]
    kept = features("emoji", extractor=pooled(), make=lambda: iter(singles), batch_size=5)
    assert kept.num_parts == 4
    assert torch.equal(array(kept), extract(pooled(), singles, batch_size=5))


def test_other_images_weights_or_resizing_are_other_features(features):
    variants = [
        (("a", "bc"), pooled()),
        (("ab", "c"), pooled()),
        (("a", "bc"), pooled(offset=1)),
        (("a", "bc"), pooled(resize="legacy")),
    ]
    kept = [features(*source, extractor=extractor, make=lambda: IMAGES[:3]) for source, extractor in variants]
    assert len({rows.key for rows in kept}) == len(variants)


def test_an_interrupted_extraction_leaves_no_features_and_resumes_where_it_stopped(features, tmp_path):
    done, seen = [], []

    def until_the_power_fails():
        yield from IMAGES[:24].split(6)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features("emoji", extractor=pooled(), make=until_the_power_fails)
    assert not list((tmp_path / "store").rglob("index.json"))
    kept = [12 for _ in (tmp_path / "store").rglob("rows-*.safetensors")]  # two batches a part
    assert len(kept) in (1, 2)

    class Counting(ModuleFeatures):
        def prepare(self, images):
            seen.extend(images)
            return super().prepare(images)

    counting = Counting(pooled().module, "pooled", 8)
    resumed = features("emoji", extractor=counting, make=lambda: IMAGES.split(6), progress=done.append)
    assert torch.equal(array(resumed), extract(pooled(), IMAGES.split(6)))
    assert len(seen) == 34 - sum(kept)
    assert done[-1] == 34


def test_a_damaged_part_alone_is_extracted_again(features, tmp_path):
    batches = []

    def make():
        for batch in IMAGES.split(5):
            batches.append(batch)
            yield batch

    expected = array(features("emoji", extractor=pooled(), make=make))
    file = next((tmp_path / "store").rglob("rows-00001.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    done = []
    assert torch.equal(array(features("emoji", extractor=pooled(), make=make, progress=done.append)), expected)
    assert done == [15, 20]


def test_the_protocol_is_stored_with_the_features(features):
    extractor = pooled()
    provenance = features("fingerprint", extractor=extractor, make=lambda: IMAGES[:3]).provenance
    assert provenance["source"] == ["fingerprint"]
    assert (provenance["extractor"], provenance["weights_hash"], provenance["resize"], provenance["dim"]) == (
        extractor.name,
        extractor.weights_hash,
        extractor.resize,
        12,
    )


def test_no_images_and_an_unwritable_folder_are_errors(features, tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
        features("none", extractor=pooled(), make=lambda: [])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        cached_features(tmp_path / "file", ["a"], pooled(), lambda: IMAGES[:3])
