"""Comparisons of GANs with each other and with diffusion models."""

import json
from pathlib import Path

import pytest
from fresh_process import gendistill

from gendistill.evaluation.entries import open_entries

ROOT = Path(__file__).parents[2]
HELD_OUT = "assets/emoji/heldout-*.tar.gz"
PROBES = """
attributes:
  vendor: {caption: name, values: {google: google emoji, twitter: twitter emoji}, prompts: ["", food]}
unusual: {path: unusual.txt}
"""


@pytest.fixture(scope="module")
def compared(gans, tiny_folder, evaluation_cache, tmp_path_factory):
    place = tmp_path_factory.mktemp("compared-gans")
    (place / "probes.yaml").write_text(PROBES)
    (place / "unusual.txt").write_text("zebra\nyak\n")
    models = [gans["teacher"], gans["student"].parent, tiny_folder]
    few = ["--steps", "1,2", "--solver", "ddim", "--quick", "--num", "40", "--metrics", "attributes,modes,robustness"]
    few += ["--caption", "category", "--reference", HELD_OUT]
    where = ["--probes", place / "probes.yaml", "--cache", evaluation_cache, "--out", place / "out", "--device", "cpu"]
    process = gendistill(["compare", *models, *few, *where], place / "printed", folder=ROOT)
    assert process.wait() == 0, process.text
    return place, json.loads((place / "out" / "comparison.json").read_text())


def test_gans_are_sampled_in_one_step_and_a_diffusion_model_in_several(compared):
    _, result = compared
    rows = [(row["model"], row["protocol"]["num_inference_steps"], row["network_calls"]) for row in result["rows"]]
    assert rows == [("teacher", 1, 1), ("run", 1, 1), ("pipeline", 2, 4), ("pipeline", 1, 2)]
    assert [row["sampler"] for row in result["rows"]] == ["generator", "generator", "DDIM", "DDIM"]
    assert all("clip_score" in row["scores"] for row in result["rows"])
    costs = [row["measured_costs"] for row in result["rows"]]
    assert [list(cost["components"]) for cost in costs[:2]] == [["network"], ["network"]]
    assert [cost["network_calls"] for cost in costs] == [1, 1, 4, 2]


def test_audits_with_other_prompts_than_classes_are_skipped_with_a_sentence(compared):
    place, result = compared
    broke = result["breakage"]["run"]
    assert broke["attributes"] == {}
    assert broke["robustness"] == []
    assert broke["unusual"] is None
    note = "attribute vendor: teacher and run sample own classes only, and neutral prompts are not among them."
    assert note in broke["notes"]
    assert len([note for note in broke["notes"] if "sample own classes only" in note]) == 4
    assert broke["coverage"]["groups"]
    assert broke["modes"]["bins"]
    page = (place / "out" / "report.html").read_text()
    assert "Regressions of run" in page
    assert "run: gan student" in page


def test_a_gan_student_is_distinguished_from_a_teacher_and_has_one_step(gans):
    teacher, student = open_entries([str(gans["teacher"]), str(gans["student"])], [4, 1], guidance_scale=3.0, solver="ddim")
    assert (teacher.is_student, student.is_student) == (False, True)
    assert list(teacher.samplers) == list(student.samplers) == [1]
    assert (student.guidance_scale, student.solver(1)) == (1.0, "generator")
