import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from gendistill.metrics.audit.probe import AttributeRule, colour_histogram, fit_probe
from gendistill.metrics.features.feature_extractor import extract

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
SKIN_TONE = AttributeRule("skin tone", {tone: f"{tone} skin tone" for tone in TONES})
VENDOR = AttributeRule("vendor", {"google": "google emoji", "twitter": "twitter emoji"})


@pytest.fixture(scope="module")
def training(extractor):
    """(images uint8, features, captions) of 2000 images of the embedded training split."""
    sys.path.insert(0, str(Path(__file__).parents[3] / "scripts" / "recipes"))
    from emoji import load_emoji

    emoji = load_emoji("train")
    rows = torch.randperm(len(emoji), generator=torch.Generator().manual_seed(0))[:2000]
    images = ((emoji.images[rows] + 1) * 127.5).round().to(torch.uint8)
    return images, extract(extractor, images), [emoji.captions[k] for k in rows.tolist()]


def names(captions):
    return [caption["name"] for caption in captions]


def of_one_emoji(captions):
    """What every tone and vendor of an emoji shares."""
    return [caption["unified"].split("-1F3F")[0] for caption in captions]


def blobs(counts, seed, dim=4, apart=4.0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    return rng.normal(size=(len(labels), dim)) + apart * np.eye(len(counts), dim)[labels], [f"v{k}" for k in labels]


@pytest.mark.parametrize(
    ("caption", "value"),
    [
        ("google emoji of waving hand sign with dark skin tone", "dark"),
        ("google emoji of waving hand sign with Medium-Dark Skin Tone", "medium-dark"),
        ("google emoji of waving hand sign with medium skin tone", "medium"),
        ("google emoji of waving hand sign", None),
        ("google emoji of couple, man with light skin tone and dark skin tone", None),
        ("google emoji of couple, man with light skin tone and light skin tone", "light"),
        ("a pundark skin tone", None),
    ],
)
def test_the_longest_whole_words_name_the_value_and_two_values_name_none(caption, value):
    assert SKIN_TONE.label(caption) == value


def test_several_phrases_may_name_a_value_and_the_rest_may_have_one_of_its_own():
    rule = AttributeRule("pet", {"dog": ("dog", "puppy"), "sausage": "hot dog"}, otherwise="no pet")
    captions = ["a puppy", "a hot dog", "a dog (small)", "dogma", "a hot dog for a dog"]
    assert rule.labels(captions) == ["dog", "sausage", "dog", "no pet", None]


def test_the_fit_is_that_of_scikit_learn():
    x, labels = blobs([60, 30, 10], 0, apart=1.0)
    probe = fit_probe(x, labels, l2=0.1)
    reference = LogisticRegression(C=1 / (0.1 * len(x)), class_weight="balanced", tol=1e-9, max_iter=1000)
    scaled = StandardScaler().fit_transform(x)
    expected = reference.fit(scaled, labels).predict_proba(scaled)
    np.testing.assert_allclose(probe.probabilities(torch.from_numpy(x)), expected, atol=1e-3)


def test_accuracy_and_confusion_are_of_held_out_images():
    rng = np.random.default_rng(1)
    noise, labels = rng.normal(size=(200, 150)), [f"v{k}" for k in rng.integers(0, 2, 200)]
    probe = fit_probe(noise, labels, l2=1e-6)
    assert np.mean(np.array(probe.predict(noise)) == labels) == 1  # fitted, it knows what cannot be known
    assert probe.accuracy < 0.65
    np.testing.assert_allclose(probe.confusion.sum(axis=1), 1)
    x, labels = blobs([50, 50, 50], 2, apart=9.0)
    assert fit_probe(x, labels).accuracy == 1
    np.testing.assert_array_equal(fit_probe(x, labels).confusion, np.eye(3))


def test_groups_keep_near_duplicates_from_flattering_the_accuracy():
    rng = np.random.default_rng(3)
    people = np.arange(300) // 10
    x = rng.normal(size=(30, 60))[people] + 0.01 * rng.normal(size=(300, 60))
    labels = [f"v{k}" for k in rng.permutation(np.arange(30) % 2)[people]]
    assert fit_probe(x, labels).accuracy > 0.95
    assert fit_probe(x, labels, groups=[str(p) for p in people]).accuracy < 0.75


def test_a_balanced_probe_is_not_sampled_to_the_value_that_it_saw_most():
    x, labels = blobs([900, 100], 4, apart=1.0)
    fresh, _ = blobs([500, 500], 5, apart=1.0)
    assert abs(np.mean(np.array(fit_probe(x, labels).predict(fresh)) == "v0") - 0.5) < 0.1


def test_a_probe_tested_on_other_images_reads_the_same_and_tells_their_accuracy():
    x, labels = blobs([100, 100], 6)
    probe = fit_probe(x, labels)
    swapped = ["v1" if label == "v0" else "v0" for label in labels]
    other = probe.tested(x, swapped, on="mislabelled images")
    assert other.accuracy == pytest.approx(1 - probe.accuracy, abs=0.03)
    assert other.confusion[0, 1] > 0.9
    assert other.tested_on == "mislabelled images"
    assert other.predict(x) == probe.predict(x)
    with pytest.raises(ValueError, match="and all of \\['v0', 'v1'\\]"):
        probe.tested(x, ["v0"] * 200, on="one value")


def test_a_colour_histogram_counts_pixels_and_has_length_one():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    images[1, 0, :, :2] = 255
    histogram = colour_histogram(images, bins=2)
    assert histogram.shape == (2, 8)
    assert histogram[0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    torch.testing.assert_close(histogram[1].square(), torch.tensor([0.5, 0, 0, 0, 0.5, 0, 0, 0]))
    torch.testing.assert_close(histogram.square().sum(dim=1), torch.ones(2))


def test_vendors_of_held_out_emoji_are_recognised_in_the_features(training, held_out, extractor):
    _, features, captions = training
    probe = fit_probe(features, VENDOR.labels(names(captions)), groups=of_one_emoji(captions), folds=2)
    probe = probe.tested(extract(extractor, held_out[0]), VENDOR.labels(names(held_out[1])), on="held-out emoji")
    assert probe.accuracy > 0.85


def test_skin_tones_of_held_out_emoji_are_recognised_in_colours_better_than_in_features(training, held_out, extractor):
    images, features, captions = training
    labels, of_held_out = SKIN_TONE.labels(names(captions)), SKIN_TONE.labels(names(held_out[1]))
    by_features = fit_probe(features, labels, groups=of_one_emoji(captions), folds=2)
    by_colours = fit_probe(colour_histogram(images), labels, groups=of_one_emoji(captions), folds=2)
    on_features = by_features.tested(extract(extractor, held_out[0]), of_held_out, on="held-out emoji")
    on_colours = by_colours.tested(colour_histogram(held_out[0]), of_held_out, on="held-out emoji")
    assert on_colours.accuracy > 0.9
    assert on_colours.accuracy > on_features.accuracy > 0.6
    # What cross-validation said before is what held-out names show.
    assert by_colours.accuracy == pytest.approx(on_colours.accuracy, abs=0.08)
    assert by_features.accuracy == pytest.approx(on_features.accuracy, abs=0.08)


def test_wrong_input_is_named():
    x = np.zeros((4, 2))
    with pytest.raises(ValueError, match="3 labels for features \\(4, 2\\)"):
        fit_probe(x, ["a", "b", "a"])
    with pytest.raises(ValueError, match="\\{'a': 4\\}, expects at least two values"):
        fit_probe(x, ["a"] * 4)
    with pytest.raises(ValueError, match="two groups each"):
        fit_probe(x, ["a", "a", "b", "b"], groups=["1", "2", "3", "3"])
    with pytest.raises(ValueError, match=r"expects torch.uint8"):
        colour_histogram(torch.zeros(1, 3, 4, 4))
