"""The metric of docs/extending.md, by one file and one registration, from outside of the package."""

import json

TEMPLATE = "my_metric"
HELD_OUT = "assets/emoji/heldout-*.tar.gz"


def test_it_is_computed_printed_stored_shown_and_listed(gendistill, gans, evaluation_cache, tmp_path, pytestconfig):
    given = ["evaluate", gans["student"], "--reference", HELD_OUT, "--caption", "category", "--num", "8", "--device", "cpu"]
    given += ["--cache", evaluation_cache, "--out", tmp_path / "out"]
    done = gendistill(*given, "--metrics", "nn", "--json", folder=pytestconfig.rootpath)
    assert done.returncode == 0, done.stderr
    (student,), (teacher,) = json.loads(done.stdout)["student"], json.loads(done.stdout)["teacher"]
    assert list(student["scores"]) == list(teacher["scores"]) == ["fd-emoji", "nearest"]
    low, high = student["intervals"]["nearest"]
    assert low < student["scores"]["nearest"] < high
    stored = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert stored["student"][0]["scores"]["nearest"] == student["scores"]["nearest"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'nearest real</abbr> <span title="lower is better">↓' in page
    assert f"{student['scores']['nearest']:.3f}" in page
    assert "Mean distance in feature space from a generated image to the nearest real one." in page


def test_help_lists_it(gendistill):
    assert "nearest" in gendistill("evaluate", "--help").stdout
