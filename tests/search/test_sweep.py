"""`gendistill sweep`: students of two sizes and a few steps from the command line."""

import json
import sys

import pytest
from tiny_runs import settings_of

from gendistill import cli
from gendistill.run.config import load_config, save_config


@pytest.fixture
def sweep(place, monkeypatch, capsys):
    """sweep(*arguments): the command line, in a folder with `config.yaml`; returns its JSON, or its error."""
    few = {"trainer__num_validation": 2, "trainer__num_solver_images": 0, "watch__prompts": 0, "trainer__validate_every": 9}
    save_config(settings_of(place, "teacher", "run", **few), place / "config.yaml")

    def run(*arguments, source="config.yaml", code=0):
        words = ["sweep", source, "--sizes", "1.0,0.5", "--steps", "1,2", "--out", "sizes", "--set", "trainer.max_steps=1"]
        monkeypatch.setattr(sys, "argv", ["gendistill", *words, "--minutes", "2", "--json", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        assert end.value.code == code, shown.err
        return " ".join(shown.err.split()) if code else json.loads(shown.out)

    return run


def test_a_sweep_of_one_size_measures_each_step_count(sweep, place):
    found = sweep("--sizes", "1.0")
    assert [(row["size"], row["steps"]) for row in found["students"]] == [(1.0, 1), (1.0, 2)]
    assert "needs 4 sizes or more" in (place / "sizes" / "report.html").read_text()


@pytest.mark.slow
def test_a_sweep_measures_each_size_at_each_step_count_and_trains_no_finished_student_again(sweep, place):
    found = sweep()
    rows = found["students"]
    assert [(row["size"], row["steps"]) for row in rows] == [(1.0, 1), (1.0, 2), (0.5, 1), (0.5, 2)]
    assert rows[2]["megabytes"] < 0.7 * rows[0]["megabytes"]
    assert all(row["milliseconds"] > 0 and row["metric"].startswith("fd") for row in rows)
    full, half = (load_config(place / "sizes" / "students" / size / "config.yaml") for size in ("1", "0.5"))
    assert (full.trainer.max_minutes, half.trainer.max_minutes) == (2, 1)  # compression gets the other half
    assert half.compress.factor == 2
    assert "no other student is better" in (place / "sizes" / "report.html").read_text()
    assert "| 0.5 | 2 |" in (place / "sizes" / "sweep.md").read_text()
    assert (place / "sizes" / "milliseconds.png").exists()
    logs = {file: file.read_text() for file in place.glob("sizes/students/*/log.jsonl")}
    assert len(logs) == 2
    assert sweep() == found
    assert logs == {file: file.read_text() for file in logs}
    assert "holds a sweep with another minutes" in sweep("--minutes", "3", code=2)


@pytest.mark.slow
def test_sizes_are_trained_in_several_processes_and_a_failed_one_is_named(sweep):
    found = sweep("--jobs", "2", "--sizes", "1.0,0.5,0.000001")
    assert {row["size"] for row in found["students"]} == {1.0, 0.5}
    assert list(found["failures"]) == ["1e-06"]
    assert "factor 1e+06: the nearest is" in found["failures"]["1e-06"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--sizes", "1.0,2"], "sizes 1.0,2.0: expects different numbers above 0 and at most 1"),
        (["--sizes", "half"], "sizes 'half': expects numbers, such as 1.0,0.5"),
        (["--steps", "0"], "expects numbers of at least 1"),
        (["--set", "compress.factor=2"], "compress.factor: sweep chooses the size itself"),
        (["--set", "method=gan"], "method gan: sweep expects a method that distills a diffusion model"),
        (["--set", "trainer.max_step=2"], "did you mean trainer.max_steps?"),
    ],
)
def test_a_mistake_is_one_sentence(sweep, arguments, expected):
    assert expected in sweep(*arguments, code=2)


def test_a_teacher_or_a_file_that_does_not_exist_is_one_sentence(sweep):
    assert "config nowhere.yaml does not exist" in sweep(source="nowhere.yaml", code=2)
    assert "nowhere does not exist" in sweep("--set", "data.prompts=prompts.txt", source="nowhere", code=2)
