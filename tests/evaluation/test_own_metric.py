"""A metric that someone registers is computed, printed, stored and shown as every other; nothing else is told of it."""

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from gendistill.cli import app
from gendistill.evaluation.reporting.page import Gallery
from gendistill.evaluation.student_report import StudentComparison, write_report
from gendistill.metrics.metric import Metric
from gendistill.metrics.protocol import Evaluation, EvaluationProtocol
from gendistill.metrics.registry import METRICS

HELD_OUT = "assets/emoji/heldout-*.tar.gz"
MINE = Metric(
    name="mine",
    label="length of features",
    explanation="Mean length of an image's features, in no units.",
    compute=lambda inputs: torch.as_tensor(inputs.features).norm(dim=1).double().numpy(),
    higher_is_better=False,
    digits=4,
)


def test_a_registered_metric_is_computed_printed_stored_and_shown(gans, tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS, "mine", MINE)
    command = ["evaluate", str(gans["student"]), "--reference", HELD_OUT, "--caption", "category", "--num", "8"]
    command += ["--metrics", "mine", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path), "--device", "cpu"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    (student,), (teacher,) = stored["student"], stored["teacher"]
    assert list(student["scores"]) == list(teacher["scores"]) == ["fd-emoji", "mine"]
    low, high = student["intervals"]["mine"]
    assert low < student["scores"]["mine"] < high
    shown = f"{student['scores']['mine']:.4f}"
    assert "length of features" in done.output.replace("\n", " ")
    assert shown in done.output
    page = (tmp_path / "report.html").read_text()
    assert 'length of features</abbr> <span title="lower is better">↓' in page
    assert shown in page
    assert "Mean length of an image&#39;s features, in no units." in page


def test_the_help_of_the_command_line_names_it(monkeypatch):
    monkeypatch.setitem(METRICS, "mine", MINE)
    for command in ("evaluate", "compare"):
        assert "mine" in CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output


@pytest.mark.parametrize("names", [("fid", "kid", "cmmd-ViT-B-32", "lpips-alex"), ("fd-emoji", "kd-emoji", "mine", "coverage")])
def test_every_column_of_a_student_s_page_explains_itself_whatever_the_network(names, tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS, "mine", MINE)
    protocol = EvaluationProtocol(names[0], "e", "0", "none", 10, "real", 100, 0, "10 drawn", 1.0, 50, {})
    rows = [Evaluation(model, "ddim", 50, dict.fromkeys(names, 0.5), 0.01, protocol) for model in ("student", "teacher")]
    comparison = StudentComparison(rows[:1], rows[1:], requested=("kid", "lpips"))
    gallery = Gallery("student", torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ["a prompt"])
    write_report(tmp_path / "r.html", "title", comparison, [gallery])
    page = (tmp_path / "r.html").read_text()
    for metric in ("fd", "kid", *(("mine", "coverage") if "mine" in names else ("cmmd", "lpips"))):
        assert METRICS[metric].explanation.replace("'", "&#39;") in page


def test_audits_are_imported_only_where_they_are_asked_for():
    code = "import sys, gendistill.evaluation.compare; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "gendistill.metrics.audit.groups" in imported
    assert not {f"gendistill.metrics.audit.{name}" for name in ("attributes", "modes", "probe", "robustness")} & set(imported)
