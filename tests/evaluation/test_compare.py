"""Comparisons of models: what they sample, write and cache."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from fresh_process import gendistill

from gendistill.evaluation.audited import AuditContext
from gendistill.evaluation.compare import compare
from gendistill.evaluation.entries import distinct_names, open_entries
from gendistill.evaluation.evaluation_config import ComparisonConfig, EvaluationConfig
from gendistill.evaluation.evaluator import build_evaluator
from gendistill.evaluation.probes import Probes
from gendistill.evaluation.regressions import AUDITS, images_to_generate
from gendistill.evaluation.requested_audits import neutral, unusual

ROOT = Path(__file__).parents[2]
HELD_OUT = "assets/emoji/heldout-*.tar.gz"
PROBES = """
attributes:
  vendor: {caption: name, values: {google: google emoji, twitter: twitter emoji}, prompts: ["", food]}
  skin tone:
    caption: name
    values: {light: [light skin tone], dark: [dark skin tone]}
    otherwise: none given
    among: {category: people and body}
    features: colours
    prompts: [person]
unusual: {path: unusual.txt}
"""


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    place = tmp_path_factory.mktemp("probes")
    (place / "probes.yaml").write_text(PROBES)
    (place / "unusual.txt").write_text("zebra\nyak\nquokka\n")
    return place / "probes.yaml"


@pytest.fixture(scope="module")
def options(tiny_folder, halved_run, probes, evaluation_cache, tmp_path_factory):
    place = tmp_path_factory.mktemp("compared")
    models = ["compare", str(tiny_folder), str(halved_run), "--steps", "1,2,4", "--reference", HELD_OUT]
    few = ["--caption", "subcategory", "-w", "2", "--solver", "ddim", "--quick", "--num", "40", "--probes", str(probes)]
    few += ["--metrics", "attributes,modes,robustness"]
    return [*models, *few, "--cache", str(evaluation_cache), "--out", str(place / "out")], place


@pytest.fixture(scope="module")
def compared(options):
    command, place = options
    process = gendistill(command, place / "printed", folder=ROOT)
    assert process.wait() == 0, process.text
    return place, process.text


def test_a_comparison_writes_a_page_an_image_and_tables(compared):
    place, printed = compared
    result = json.loads((place / "out" / "comparison.json").read_text())
    rows = [(row["model"], row["protocol"]["num_inference_steps"], row["network_calls"]) for row in result["rows"]]
    assert rows == [("pipeline", 4, 8), ("pipeline", 2, 4), ("pipeline", 1, 2), ("run", 2, 2), ("run", 1, 1)]
    assert [row["measured_costs"]["network_calls"] for row in result["rows"]] == [calls for _, _, calls in rows]
    assert "warning: 40 images are too few for 128 features" in printed
    page = (place / "out" / "report.html").read_text()
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)
    assert "Regressions of run" in page
    assert "Neutral prompts" in page
    assert (place / "out" / "quality.png").read_bytes().startswith(b"\x89PNG")
    with (place / "out" / "comparison.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["fd-emoji"]) for row in table] == [row["scores"]["fd-emoji"] for row in result["rows"]]
    assert all(float(row["latency_seconds"]) > 0 and float(row["flops"]) > 0 for row in table)


def test_every_score_of_a_row_has_an_interval(compared):
    place, _ = compared
    for row in json.loads((place / "out" / "comparison.json").read_text())["rows"]:
        assert row["scores"].keys() == row["intervals"].keys()
        assert {"fd-emoji", "kd-emoji", "recall", "coverage", "vendi", "clip_score", "clip_r"} < row["scores"].keys()


def test_regressions_of_the_student_are_reported_against_the_first_model(compared):
    place, _ = compared
    broke = json.loads((place / "out" / "comparison.json").read_text())["breakage"]["run"]
    assert broke["attributes"]["vendor"]["teacher_count"] == 64
    assert broke["attributes"]["skin tone"]["accuracy"] > 0.5
    assert sum(value["student"] for value in broke["attributes"]["skin tone"]["values"]) == pytest.approx(1)
    assert broke["unusual"]["n"] == 64
    assert broke["robustness"][0]["kind"] == "typo"
    assert any("the tokenizer sees no difference" in note for note in broke["notes"])  # capitals
    assert 0 <= broke["memorisation"]["student"]["near_fraction"] <= 1


def test_a_repeated_comparison_samples_and_times_nothing_anew(compared, options, evaluation_cache):
    place, _ = compared
    before = {file: file.stat().st_mtime_ns for file in evaluation_cache.rglob("*.png")}
    costs = {file: file.stat().st_mtime_ns for file in (place / "out" / "costs").iterdir()}
    first = json.loads((place / "out" / "comparison.json").read_text())
    process = gendistill(options[0], place / "printed again", folder=ROOT)
    assert process.wait() == 0, process.text
    assert {file: file.stat().st_mtime_ns for file in evaluation_cache.rglob("*.png")} == before
    assert {file: file.stat().st_mtime_ns for file in (place / "out" / "costs").iterdir()} == costs
    again = json.loads((place / "out" / "comparison.json").read_text())
    assert [row["scores"] for row in again["rows"]] == [row["scores"] for row in first["rows"]]


def test_a_model_does_not_differ_from_itself(tiny_folder, evaluation_cache, tmp_path):
    (tmp_path / "same").symlink_to(tiny_folder)
    found = compare(
        [str(tiny_folder), str(tmp_path / "same")],
        ComparisonConfig(
            steps=[2],
            reference=HELD_OUT,
            caption="subcategory",
            num=12,
            guidance_scale=1.0,
            quick=True,
            cache=str(evaluation_cache),
            out=tmp_path / "out",
            device="cpu",
        ),
    )
    assert all(test.test.p_value == 1 and test.test.difference == 0 for test in found.tests)
    assert found.rows[1].evaluation.scores["psnr"] == 100
    assert found.regressions == {}  # neither is a student


def test_students_are_sampled_at_the_steps_that_they_were_trained_for(tiny_folder, halved_run):
    teacher, student = open_entries([str(tiny_folder), str(halved_run)], [8, 2], guidance_scale=3.0, solver="dpm-solver++")
    assert list(teacher.samplers) == [8, 2]
    assert list(student.samplers) == [2]
    assert (teacher.solver(8), student.solver(2)) == ("DPMSolverMultistep", "ddim")
    with pytest.raises(ValueError, match=r"steps \[7\]: .* was trained for 1, 2; expects one of them"):
        open_entries([str(halved_run)], [7])
    with pytest.raises(ValueError, match="solver 'euler': expects ddim or dpm-solver"):
        open_entries([str(tiny_folder)], [2], solver="euler")


def test_models_are_named_by_as_many_path_components_as_make_them_distinct():
    assert distinct_names(["assets/tiny-sd", "runs/full/student", "runs/demo/student"]) == ["tiny-sd", "full", "demo"]
    assert distinct_names(["a/x", "b/x", "c"]) == ["a/x", "b/x", "c"]
    with pytest.raises(ValueError, match="one is given twice"):
        distinct_names(["a", "a"])


def test_neutral_and_unusual_prompts_occur_equally_often_and_have_their_own_seeds(probes, evaluation_cache):
    evaluator = build_evaluator(EvaluationConfig(HELD_OUT, caption="subcategory", num=4, cache=str(evaluation_cache)))
    found = Probes.load(probes)
    open_prompts = neutral(evaluator, found.attributes["vendor"], 7)
    assert open_prompts.prompts == ["", "food", "", "food", "", "food", ""]
    rare = unusual(evaluator, found, 6)
    assert sorted(rare.prompts) == sorted(["zebra", "yak", "quokka"] * 2)
    assert len({*evaluator.seeds, *open_prompts.seeds, *rare.seeds}) == 4 + 7 + 6
    assert images_to_generate(AuditContext(evaluator, HELD_OUT, found, 10, AUDITS)) == 50
    assert images_to_generate(AuditContext(evaluator, HELD_OUT, found, 10)) == 0


def test_the_embedded_probes_are_valid(tmp_path):
    found = Probes.for_reference("assets/emoji/train-*.tar.gz")
    assert set(found.attributes) == {"vendor", "skin tone"}
    assert found.unusual.path.endswith("assets/emoji/heldout-*.tar.gz")
    assert Probes.for_reference(str(tmp_path)).attributes == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("attributes: [", "cannot be read as YAML"),
        ("just words", "expects `attributes`, a mapping"),
        ("atributes: {}", "atributes is not known; did you mean attributes"),
        ("attributes: {tone: {values: {a: b}, prompts: []}}", "attribute tone: setting prompts is .*expects at least 1"),
        (
            "attributes: {tone: {values: {a: b}, prompts: [x], features: smell}}",
            "attribute tone: setting features is .smell.; expects extractor or colours",
        ),
    ],
)
def test_a_mistake_in_probes_is_one_sentence(text, sentence, tmp_path):
    (tmp_path / "probes.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence) as error:
        Probes.load(tmp_path / "probes.yaml")
    assert str(error.value).startswith("probes ")


@pytest.mark.slow
def test_50_steps_of_tiny_sd_differ_from_8_with_500_prompts(tmp_path):
    found = compare(
        ["assets/tiny-sd"],
        ComparisonConfig(
            steps=[50, 8],
            reference="assets/emoji/train-*.tar.gz",
            caption="subcategory",
            num=500,
            guidance_scale=2.0,
            solver="ddim",
            quick=True,
            cache=str(tmp_path / "cache"),
            out=tmp_path / "out",
        ),
    )
    test = next(test.test for test in found.tests if test.score == "fd-emoji")
    assert test.p_value < 0.05
    assert test.difference > 0
    assert test.interval.low > 0
    assert torch.isfinite(torch.tensor(test.interval.high))


def test_models_without_prompts_are_compared_without_clip(family_folder, evaluation_cache, tmp_path):
    folder = family_folder("unconditional")
    found = compare(
        [str(folder)],
        ComparisonConfig(
            steps=[2, 1],
            reference=HELD_OUT,
            num=8,
            quick=True,
            extractor="emoji",
            cache=str(evaluation_cache),
            out=tmp_path / "out",
            device="cpu",
        ),
    )
    assert [row.evaluation.network_calls for row in found.rows] == [2, 1]
    assert "clip_score" not in found.rows[0].evaluation.scores
    assert found.rows[0].evaluation.protocol.clip_model is None
    assert (tmp_path / "out" / "report.html").is_file()
