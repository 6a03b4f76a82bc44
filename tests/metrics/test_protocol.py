import dataclasses
import json

import pytest
from rich.console import Console

from gendistill.metrics.protocol import Evaluation, EvaluationProtocol, comparable, gap_closed
from gendistill.metrics.registry import higher_is_better

PROTOCOL = EvaluationProtocol(
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


def test_an_evaluation_of_the_previous_version_is_read_though_its_field_was_called_seconds_per_picture():
    old = json.loads(EVALUATION.to_json())
    old["seconds_per_picture"] = old.pop("seconds_per_image")
    assert Evaluation.from_json(json.dumps(old)) == EVALUATION


def test_a_missing_or_unknown_field_is_named():
    fields = json.loads(EVALUATION.to_json())
    fields["protocol"]["num_sample"] = fields["protocol"].pop("num_samples")
    with pytest.raises(ValueError, match=r"protocol.num_samples\n  Field required[\s\S]*protocol.num_sample\n  Unexpected"):
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


def test_references_of_other_contents_are_not_compared_though_they_have_one_name():
    ours, theirs = with_protocol(reference_hash="a" * 16), with_protocol(reference_hash="b" * 16)
    with pytest.raises(ValueError, match="reference_hash"):
        comparable(ours, theirs)
    comparable(ours, EVALUATION)  # from before contents were noted


def test_the_difference_of_two_results_is_score_by_score():
    other = dataclasses.replace(EVALUATION, scores={"fd-emoji": 2.0})
    assert EVALUATION.differences(other) == {"fd-emoji": -0.5}
    with pytest.raises(ValueError, match="cannot be compared"):
        EVALUATION.differences(with_protocol(num_samples=999))


def test_a_result_prints_as_a_table_with_intervals(capsys):
    row = dataclasses.replace(EVALUATION, intervals={"fd-emoji": (1.25, 1.75)})
    assert Evaluation.from_json(row.to_json()) == row
    Console(width=200).print(row.table())
    printed = capsys.readouterr().out
    assert "student, 4 steps" in printed
    assert "1.25 to 1.75" in printed
    assert "0123456789abcdef" in row.protocol.describe()


def test_lower_is_better_for_distances_alone():
    assert [higher_is_better(name) for name in ("fid", "fid-clean", "kd-emoji", "lpips-alex", "cmmd-x")] == [False] * 5
    assert all(map(higher_is_better, ("clip_score", "precision", "psnr", "vendi", "feature_cosine")))


def test_the_gap_closed_is_1_at_the_teacher_and_0_at_the_free_sampler():
    assert gap_closed(student_fd=10, free_fd=30, teacher_fd=10) == 1
    assert gap_closed(student_fd=30, free_fd=30, teacher_fd=10) == 0
    assert gap_closed(student_fd=25, free_fd=30, teacher_fd=10) == 0.25
    with pytest.raises(ValueError, match="two different distances"):
        gap_closed(1, 2, 2)
