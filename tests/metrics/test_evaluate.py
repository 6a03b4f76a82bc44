import dataclasses
import json

import pytest

from gendistill.metrics.evaluate import Evaluation, Protocol, comparable, evaluate_images, gap_closed
from gendistill.metrics.features import extract
from gendistill.metrics.frechet import frechet_distance, gaussian_statistics

PROTOCOL = Protocol(
    metric="fd-emoji",
    extractor="emoji",
    weights_hash="0123456789abcdef",
    resize="to 32x32",
    num_samples=1000,
    reference="emoji train",
    reference_count=6818,
    seed=0,
    prompts="names of emoji heldout",
    guidance_scale=3.0,
    num_inference_steps=4,
    versions={"torch": "2.4"},
)
EVALUATION = Evaluation("student", "lcm", 4, {"fd-emoji": 1.5, "clip_score": 60.0}, 0.01, PROTOCOL)


def with_protocol(**changes):
    return dataclasses.replace(EVALUATION, protocol=dataclasses.replace(PROTOCOL, **changes))


def test_an_evaluation_survives_json():
    assert Evaluation.from_json(EVALUATION.to_json()) == EVALUATION


def test_a_missing_or_unknown_field_is_named():
    fields = json.loads(EVALUATION.to_json())
    fields["protocol"]["num_sample"] = fields["protocol"].pop("num_samples")
    with pytest.raises(ValueError, match=r"Protocol: .*'num_sample', 'num_samples'"):
        Evaluation.from_json(json.dumps(fields))


def test_seeds_steps_and_guidance_may_differ_in_a_comparison():
    comparable(EVALUATION, with_protocol(seed=1, num_inference_steps=50, guidance_scale=1.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"extractor": "inception"},
        {"weights_hash": "f" * 16},
        {"resize": "to 299x299"},
        {"num_samples": 999},
        {"reference": "emoji heldout"},
        {"prompts": "none"},
        {"clip_weights_hash": "f" * 16},
    ],
)
def test_evaluations_of_different_protocols_are_not_compared(changes):
    with pytest.raises(ValueError, match=f"cannot be compared: {next(iter(changes))}"):
        comparable(EVALUATION, with_protocol(**changes))


def test_images_are_scored_as_the_single_metrics_score_them(extractor, scorer, held_out):
    images, prompts = held_out[0][:40], [c["name"] for c in held_out[1][:40]]
    reference = gaussian_statistics(extract(extractor, held_out[0][40:200]))
    scores = evaluate_images(images, prompts, reference, extractor, scorer)
    assert scores["fd-emoji"] == frechet_distance(gaussian_statistics(extract(extractor, images)), reference)
    assert scores["clip_score"] == pytest.approx(scorer.score(images, prompts).mean().item())
    assert set(evaluate_images(images, None, reference, extractor)) == {"fd-emoji"}


def test_the_clip_score_needs_prompts(extractor, scorer, held_out):
    reference = gaussian_statistics(extract(extractor, held_out[0][:10]))
    with pytest.raises(ValueError, match="prompts: got none"):
        evaluate_images(held_out[0][:10], None, reference, extractor, scorer)


def test_the_gap_closed_is_1_at_the_teacher_and_0_at_the_free_sampler():
    assert gap_closed(student_fd=10, free_fd=30, teacher_fd=10) == 1
    assert gap_closed(student_fd=30, free_fd=30, teacher_fd=10) == 0
    assert gap_closed(student_fd=25, free_fd=30, teacher_fd=10) == 0.25
    with pytest.raises(ValueError, match="two different distances"):
        gap_closed(1, 2, 2)
