"""All scores in one go are what each metric gives by itself."""

import pytest
import torch

from gendistill.metrics.distances.clip_score import clip_scores
from gendistill.metrics.distances.cmmd import cmmd
from gendistill.metrics.distances.frechet import frechet_distance
from gendistill.metrics.distances.kernel import kid_of_all
from gendistill.metrics.distances.manifold import manifold_scores
from gendistill.metrics.distances.vendi import vendi_score
from gendistill.metrics.features.feature_extractor import extract
from gendistill.metrics.features.gaussian import gaussian_statistics
from gendistill.metrics.measure import measure
from gendistill.metrics.metric import Metric, ReferenceFeatures, SampleFeatures
from gendistill.metrics.registry import METRICS, chosen_metrics, higher_is_better, metric_of

OF_SETS = [name for name, metric in METRICS.items() if not metric.of_pairs]


@pytest.fixture(scope="module")
def emoji(held_out, extractor, scorer):
    images, captions = held_out
    prompts = [caption["subcategory"] for caption in captions]
    features, embedded = extract(extractor, images), scorer.embed_images(images)
    generated = SampleFeatures(features[:150], prompts[:150], embedded[:150], scorer.embed_texts(prompts[:150]))
    real = ReferenceFeatures(gaussian_statistics(features[150:]), features[150:], embedded[150:])
    return generated, real


def test_every_score_is_that_of_its_metric_alone(emoji):
    generated, real = emoji
    scores = measure(generated, real, OF_SETS, fd="fd-emoji", clip="tiny-clip", intervals=False).values
    manifold = manifold_scores(generated.features, real.features, 5)
    assert scores["fd-emoji"] == frechet_distance(gaussian_statistics(generated.features), real.statistics)
    assert scores["kd-emoji"] == kid_of_all(generated.features, real.features)
    assert scores["vendi"] == vendi_score(generated.features)
    assert scores["coverage"] == manifold.coverage.mean()
    assert scores["recall"] == manifold.recall.mean()
    assert scores["clip_score"] == pytest.approx(
        clip_scores(generated.image_embeddings, generated.text_embeddings).mean().item()
    )
    assert scores["cmmd-tiny-clip"] == cmmd(generated.image_embeddings, real.image_embeddings)
    assert {"fd-emoji-infinity", "precision", "density", "diversity", "clip_r"} < scores.keys()


def test_every_score_of_a_set_has_an_interval_and_that_of_a_mean_holds_the_mean(emoji):
    generated, real = emoji
    found = measure(generated, real, OF_SETS, fd="fd-emoji", clip="tiny-clip")
    assert found.intervals.keys() == found.values.keys()
    for name in ("precision", "recall", "density", "coverage", "clip_score", "clip_r", "diversity"):
        low, high = found.intervals[name]
        assert low <= found.values[name] <= high
    assert found.intervals["fd-emoji"][0] < found.values["fd-emoji"]


def test_names_as_people_say_them_are_understood():
    assert chosen_metrics(["FID", "recall", "clip-score", "kid"]) == ("fd", "recall", "clip_score", "kid")
    assert chosen_metrics(["prdc"]) == ("precision", "recall", "density", "coverage")
    with pytest.raises(ValueError, match="did you mean 'vendi'"):
        chosen_metrics(["vendy"])


@pytest.mark.parametrize(
    ("fd", "expected"),
    [
        ("fid", {"fid", "fid-infinity", "kid", "cmmd-tiny-clip"}),
        ("fid-clean", {"fid-clean", "fid-clean-infinity", "kid-clean", "cmmd-tiny-clip"}),
        ("fd-emoji", {"fd-emoji", "fd-emoji-infinity", "kd-emoji", "cmmd-tiny-clip"}),
    ],
)
def test_scores_are_named_after_their_networks_and_found_by_that_name(emoji, fd, expected):
    asked = ["fd", "fd_infinity", "kid", "cmmd"]
    values = measure(*emoji, asked, fd=fd, clip="tiny-clip", intervals=False).values
    assert set(values) == expected
    assert [metric_of(name).name for name in values] == asked
    assert not any(map(higher_is_better, values))


def test_every_metric_explains_itself():
    for metric in METRICS.values():
        assert metric.explanation.endswith(".")


def test_a_metric_that_is_registered_from_outside_is_computed_like_any_other(emoji, monkeypatch):
    norm = Metric("norm", "Mean length.", lambda inputs: inputs.features.norm(dim=1).double().numpy(), higher_is_better=False)
    monkeypatch.setitem(METRICS, "norm", norm)
    found = measure(*emoji, ["norm"], fd="fid")
    assert found.values["norm"] == pytest.approx(emoji[0].features.norm(dim=1).mean().item())
    low, high = found.intervals["norm"]
    assert low < found.values["norm"] < high
    assert not higher_is_better("norm")


def test_what_a_metric_lacks_is_said(emoji):
    generated, real = emoji
    statistics = ReferenceFeatures(real.statistics)
    with pytest.raises(ValueError, match="saved statistics, from which only the Fréchet distance follows"):
        measure(generated, statistics, ["kid"], fd="fd-emoji")
    with pytest.raises(ValueError, match="clip_score: got no CLIP embeddings"):
        measure(SampleFeatures(generated.features), real, ["clip_score"], fd="fd-emoji")
    with pytest.raises(ValueError, match="cmmd: got no CLIP embeddings"):
        measure(SampleFeatures(generated.features), real, ["cmmd"], fd="fd-emoji")
    assert measure(
        SampleFeatures(torch.as_tensor(generated.features)), statistics, ["fd"], fd="fd-emoji", intervals=False
    ).values
