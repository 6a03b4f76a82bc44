"""`distill --budget`: a run that ends within its time, its evaluation included, by rules that the docs print."""

import json
import math
import time

import pytest
import torch
import yaml

from gendistill.evaluation.reporting.page import Gallery
from gendistill.evaluation.student_report import StudentComparison, write_report
from gendistill.evaluation.teacher_plans import TEACHER_STEPS, gaps, plans_at
from gendistill.metrics.protocol import Evaluation, EvaluationProtocol
from gendistill.run.budget_evaluation import EvaluationSize, evaluation_sizes, time_limit
from gendistill.run.budget_forecast import forecast
from gendistill.run.budget_memory import fitting_memory, memory_ladder
from gendistill.run.budget_rules import VISITS, Facts, chosen_rules, chosen_settings, num_trajectories
from gendistill.run.budgeted_run import FEWEST, distill_in_budget, plan_budget
from gendistill.run.config import config_text, load_config
from gendistill.run.training_plan import step_needs
from gendistill.samplers.families import family_called
from gendistill.settings.quantities import duration, parse_gib, parse_seconds

SMALL = Facts((4, 2, 1), "cpu", bf16=False, transformer=False, guided=True, embedded=True, parameters=10**6)


@pytest.fixture
def settings(tiny_folder, tmp_path):
    """Settings of a data-free run of the tiny pipeline in tmp_path/run."""
    (tmp_path / "prompts.txt").write_text("food\nemoji of animals\n")
    return {
        "teacher": str(tiny_folder),
        "data.prompts": str(tmp_path / "prompts.txt"),
        "data.cache": str(tmp_path / "cache"),
        "data.synthetic_steps": 2,
        "device": "cpu",
        "out": str(tmp_path / "run"),
        "trainer.trackers": [],
    }


@pytest.mark.slow
def test_a_run_ends_within_its_budget_with_the_settings_of_its_dry_run_and_an_evaluation(settings, tmp_path):
    dry = plan_budget(settings, 150)
    assert plan_budget(settings, 7200).config.method == "latent_alignment"
    started = time.monotonic()
    plan = plan_budget(settings, 150)
    assert plan.config == dry.config
    result = distill_in_budget(plan, started)
    assert time.monotonic() - started < 150
    assert len(json.loads((tmp_path / "run" / "evaluation.json").read_text())["student"]) == 3
    assert result.comparison.student[0].protocol.num_samples >= FEWEST
    written = load_config(tmp_path / "run" / "config.yaml")
    assert written == load_config(None, yaml.safe_load(config_text(plan.config)))
    assert json.loads((tmp_path / "run" / "budget.json").read_text())["seconds"] < 150


def test_a_dry_run_prints_yaml_that_runs_and_leaves_no_run_and_too_short_a_budget_is_refused_at_once(settings, tmp_path):
    plan = plan_budget(settings, 3600, purpose="1 step")
    assert load_config(None, yaml.safe_load(config_text(plan.config))) == plan.config
    assert (plan.config.method, plan.config.steps) == ("consistency", [1])
    assert plan.config.trainer.max_minutes * 60 < 3600 - plan.timetable.evaluation
    assert "no forecast: this teacher was not measured" in "\n".join(plan.lines())
    with pytest.raises(ValueError, match=r"a budget of 5 s is too short for one validation .*; the least that would do is"):
        plan_budget(settings, 5, purpose="1 step")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--budget", "2 weeks"], "--budget '2 weeks': expects a number above 0 with its unit, such as 90s, 10m or 1.5h"),
        (["--budget", "0m"], "--budget '0m': expects a number above 0"),
        (["--budget", "1h", "--memory", "12"], "--memory '12': expects a number above 0 with its unit, such as 12GB or 800MB"),
        (["--budget", "1h", "--for", "few steps"], "--for 'few steps': expects a number of steps, such as '4 steps'"),
        (["--budget", "1h", "--memory", "1MB"], "memory of 0.00 GiB: no settings of teacher fit, the least that would do is"),
        (["--budget", "1h", "--method", "consistency"], "method consistency: --budget chooses it; expects --for, or a run"),
        (
            ["--budget", "1h", "--resume"],
            "--budget 1h: chooses the settings of a new run; expects neither --config nor --resume",
        ),
        (["--budget", "1h", "--compress", "2"], "--budget plans one training in one process; expects no --compress"),
        (["--memory", "1GB"], "--memory, --for: expect --budget, such as --budget 30m"),
    ],
)
def test_mistakes_are_one_sentence(place, monkeypatch, capsys, arguments, sentence):
    from gendistill import cli

    command = ["gendistill", "distill", "teacher", "--prompts", "prompts.txt", "--device", "cpu", "--out", "run", *arguments]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1


def test_less_memory_means_a_lora_then_checkpointing_then_parts_of_a_batch_then_small_weights(tiny_folder):
    """Each rung of the ladder needs less than the one before it, and the first that fits is chosen."""
    settings = {"teacher": str(tiny_folder), "data.path": "images", "trainer.batch_size": 32, "lora.rank": 4}
    family, peaks = family_called("StableDiffusionPipeline"), []
    ladder = dict(memory_ladder(family))
    for name in ("all weights", "a LoRA of rank 64", "gradient checkpointing", "one image at a time"):
        peaks.append(step_needs(load_config(None, {**ladder[name], **settings}), cpu=True).peak / 2**30)
    assert peaks == sorted(peaks, reverse=True)
    changes, reason = fitting_memory(settings, family, "cpu", peaks[2] * 1.0001)
    assert changes == ladder["gradient checkpointing"]
    assert reason.startswith("memory: gradient checkpointing")
    assert [name for name, _ in memory_ladder(family_called("PixArtSigmaPipeline"))][:2] == [
        "all weights",
        "gradient checkpointing",
    ]


@pytest.mark.slow
def test_stable_diffusion_is_trained_as_a_lora_on_usual_cards():
    settings = {"teacher": "sd1", "data.path": "images", "dtype": "bfloat16", "trainer.batch_size": 32}
    changes, _ = fitting_memory(settings, family_called("StableDiffusionPipeline"), "cuda", 12.0)
    assert changes["lora.enabled"]
    assert changes["trainer.gradient_checkpointing"]
    assert changes["trainer.gradient_accumulation_steps"] > 1


def test_the_method_is_chosen_by_purpose_and_time():
    long = {"trajectories": math.inf}
    assert chosen_settings(SMALL)["method"] == "consistency"
    aligned = chosen_settings(Facts(**{**vars(SMALL), **long}))
    assert (aligned["method"], aligned["guidance.scale"]) == ("latent_alignment", 2.0)
    assert chosen_settings(Facts(**{**vars(SMALL), **long, "steps": (1,)}))["method"] == "consistency"
    large = chosen_settings(Facts(**{**vars(SMALL), "parameters": 10**9, "device": "cuda", "bf16": True}))
    assert (large["trainer.mixed_precision"], large["trainer.learning_rate"]) == ("bf16", 8e-6)
    assert len({rule.decides for rule in chosen_rules(SMALL)}) == len(list(chosen_rules(SMALL)))


def test_no_trajectory_is_visited_more_than_a_dozen_times():
    for seconds, each, step in ((600, 0.06, 0.5), (600, 0.6, 0.05), (3600, 0.06, 0.3)):
        count = num_trajectories(seconds, each, step, 32)
        assert (seconds - count * each) / step * 32 / count <= VISITS * 1.05
        assert count * each >= seconds / 2 - 1


def test_the_stored_figures_of_a_teacher_are_used_and_a_teacher_without_is_left_out_last():
    stored = load_config(None, {"data.path": "assets/emoji/train-*.tar.gz", "data.caption": "subcategory"})
    assert evaluation_sizes(stored)[0] == EvaluationSize(2000, True, "stored")
    sizes = evaluation_sizes(load_config(None, {"data.prompts": "prompts.txt"}))
    assert (sizes[0].teacher, sizes[-1]) == ("full", EvaluationSize(500, False, "none"))


def test_a_student_is_evaluated_alone_or_with_its_teacher_at_one_scale(tmp_path):
    assert {scale for _, _, scale in plans_at((2.0,))} == {1.0, 2.0}
    assert [plan for plan in plans_at((2.0,)) if plan[1] == TEACHER_STEPS] == [("ddim", TEACHER_STEPS, 2.0)]
    protocol = EvaluationProtocol("fid", "e", "0", "none", 10, "real", 100, 0, "10 sampled", 1.0, 4, {})
    alone = StudentComparison([Evaluation("student", "ddim", 4, {"fid": 0.5}, 0.01, protocol)], [])
    assert alone.table().row_count == 1
    gallery = Gallery("student", torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ["a prompt"])
    write_report(tmp_path / "report.html", "alone", alone, [gallery])
    assert "student" in (tmp_path / "report.html").read_text()
    assert gaps(alone.student, []) == []


def test_an_embedded_teacher_has_a_forecast():
    assert forecast("tiny-sd", "consistency", 64_000, [4, 2, 1]).startswith("0.85 at 4, 0.96 at 2, 0.93 at 1 calls")
    assert "less in so short a run" in forecast("tiny-sd", "latent_alignment", 400, [4])
    assert forecast("my-model", "consistency", 64_000, [4]) == "no forecast: this teacher was not measured"


def test_times_and_memory_are_read_with_their_units():
    assert [parse_seconds("--budget", text) for text in ("90s", "10m", "1.5h")] == [90, 600, 5400]
    assert [parse_gib("--memory", text) for text in ("12GB", "512MB", "2 GiB")] == [12, 0.5, 2]
    assert [duration(seconds) for seconds in (40.2, 600, 9000)] == ["41 s", "10 min", "2 h 30 min"]


def test_work_over_its_time_is_stopped():
    with pytest.raises(TimeoutError), time_limit(0.05):
        time.sleep(5)
