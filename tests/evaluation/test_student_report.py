"""The columns of a student's page, and what an evaluation imports."""

import pytest
import torch
from warm_process import ran_warm

from gendistill.evaluation.reporting.page import Gallery
from gendistill.evaluation.student_report import StudentComparison, write_report
from gendistill.metrics.protocol import Evaluation, EvaluationProtocol
from gendistill.metrics.registry import METRICS


@pytest.mark.parametrize("names", [("fid", "kid", "cmmd-ViT-B-32", "lpips-alex"), ("fd-emoji", "kd-emoji", "coverage")])
def test_every_column_of_a_students_page_is_explained_for_every_network(names, tmp_path):
    protocol = EvaluationProtocol(names[0], "e", "0", "none", 10, "real", 100, 0, "10 sampled", 1.0, 50, {})
    rows = [Evaluation(model, "ddim", 50, dict.fromkeys(names, 0.5), 0.01, protocol) for model in ("student", "teacher")]
    comparison = StudentComparison(rows[:1], rows[1:], requested=("kid", "lpips"))
    gallery = Gallery("student", torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ["a prompt"])
    write_report(tmp_path / "r.html", "title", comparison, [gallery])
    page = (tmp_path / "r.html").read_text()
    for metric in ("fd", "kid", *(("coverage",) if "coverage" in names else ("cmmd", "lpips"))):
        assert METRICS[metric].explanation.replace("'", "&#39;") in page


def test_audits_are_imported_only_on_request(tmp_path):
    code = "import sys, gendistill.evaluation.compare; print(*sys.modules)"
    imported = ran_warm(code, folder=tmp_path).stdout.split()
    assert "gendistill.metrics.audit.groups" in imported
    assert not {f"gendistill.metrics.audit.{name}" for name in ("attributes", "modes", "probe", "robustness")} & set(imported)
