"""All scores in one go are what each metric gives by itself."""

import pytest
import torch

from gendistill.metrics.distances.clip_score import clip_scores
from gendistill.metrics.distances.frechet import frechet_distance, gaussian_statistics
from gendistill.metrics.distances.kernel import cmmd, kid_of_all
from gendistill.metrics.distances.manifold import manifold_scores
from gendistill.metrics.distances.vendi import vendi_score
from gendistill.metrics.features.feature_extractor import extract
from gendistill.metrics.measure import METRICS, Pictures, Reference, chosen_metrics, kernel_name, measure


@pytest.fixture(scope="module")
def emoji(held_out, extractor, scorer):
    pictures, captions = held_out
    prompts = [caption["subcategory"] for caption in captions]
    features, images = extract(extractor, pictures), scorer.embed_images(pictures)
    drawn = Pictures(features[:150], prompts[:150], images[:150], scorer.embed_texts(prompts[:150]))
    real = Reference(gaussian_statistics(features[150:]), features[150:], images[150:])
    return drawn, real


def test_every_score_is_that_of_its_metric_alone(emoji):
    drawn, real = emoji
    scores = measure(drawn, real, list(METRICS), fd="fd-emoji", clip="tiny-clip", intervals=False).values
    manifold = manifold_scores(drawn.features, real.features, 5)
    assert scores["fd-emoji"] == frechet_distance(gaussian_statistics(drawn.features), real.statistics)
    assert scores["kd-emoji"] == kid_of_all(drawn.features, real.features)
    assert scores["vendi"] == vendi_score(drawn.features)
    assert scores["coverage"] == manifold.covered.mean()
    assert scores["recall"] == manifold.recalled.mean()
    assert scores["clip_score"] == pytest.approx(clip_scores(drawn.images, drawn.texts).mean().item())
    assert scores["cmmd-tiny-clip"] == cmmd(drawn.images, real.images)
    assert {"fd-emoji-infinity", "precision", "density", "diversity", "clip_r"} < scores.keys()


def test_every_score_of_a_set_has_an_interval_and_that_of_a_mean_holds_the_mean(emoji):
    drawn, real = emoji
    found = measure(drawn, real, list(METRICS), fd="fd-emoji", clip="tiny-clip")
    assert found.intervals.keys() == found.values.keys()
    for name in ("precision", "recall", "density", "coverage", "clip_score", "clip_r", "diversity"):
        low, high = found.intervals[name]
        assert low <= found.values[name] <= high
    assert found.intervals["fd-emoji"][0] < found.values["fd-emoji"]


def test_the_mean_of_what_single_pictures_give_is_the_score(emoji):
    found = measure(*emoji, ["prdc", "clip_score", "clip_r"], fd="fd-emoji", intervals=False)
    for name, values in found.per_picture.items():
        assert values.mean() == pytest.approx(found.values[name])


def test_names_as_people_say_them_are_understood():
    assert chosen_metrics(["FID", "precision", "recall", "clip-score", "kid"]) == ("fd", "prdc", "clip_score", "kid")
    assert [kernel_name(name) for name in ("fid", "fid-clean", "fd-emoji")] == ["kid", "kid-clean", "kd-emoji"]
    with pytest.raises(ValueError, match="did you mean 'vendi'"):
        chosen_metrics(["vendy"])


def test_what_a_metric_lacks_is_said(emoji):
    drawn, real = emoji
    statistics = Reference(real.statistics)
    with pytest.raises(ValueError, match="saved statistics, from which only the Fréchet distance follows"):
        measure(drawn, statistics, ["kid"], fd="fd-emoji")
    with pytest.raises(ValueError, match="CLIP score and CLIP-R take one a picture"):
        measure(Pictures(drawn.features), real, ["clip_score"], fd="fd-emoji")
    with pytest.raises(ValueError, match="cmmd: takes CLIP's embeddings"):
        measure(Pictures(drawn.features), real, ["cmmd"], fd="fd-emoji")
    assert measure(Pictures(torch.as_tensor(drawn.features)), statistics, ["fd"], fd="fd-emoji", intervals=False).values
