"""The method of docs/extending.md, by one file and one registration, from outside of the package."""

import json
import os
import subprocess
import sys

from plugin import install_template

TEMPLATE = "my_method"


def test_a_method_of_two_time_scales_is_trained_resumed_and_exported(gendistill, tiny_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("food\nanimals\n")
    settings = {
        "data.num_synthetic": 4,
        "data.synthetic_steps": 2,
        "lora.enabled": True,
        "lora.rank": 2,
        "two_time_scale.fake_score_steps": 2,
        "trainer.max_steps": 4,
        "trainer.batch_size": 2,
        "trainer.gradient_accumulation_steps": 2,
        "trainer.gradient_checkpointing": True,
        "trainer.log_every": 1,
        "trainer.num_validation": 2,
        "trainer.validate_every": 4,
        "trainer.trackers": "[]",
    }
    given = ["distill", tiny_folder, "--method", "two_time_scale", "--steps", "2,1", "--prompts", tmp_path / "prompts.txt"]
    given += ["--device", "cpu", "--out", tmp_path / "run"]
    given += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    planned = gendistill(*given, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "fake_score_steps: 2" in planned.stdout
    ran = gendistill(*given)
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "fake_score_loss" in line]
    assert ["loss" in line for line in logged] == [True, False, True, False], "the student steps on every second step"
    assert all(line["fake_score_gradient_norm"] > 0 for line in logged)
    assert (tmp_path / "run" / "student" / "pytorch_lora_weights.safetensors").is_file()
    checkpoint = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    assert (checkpoint / "optimizers.safetensors").stat().st_size > 0
    resumed = gendistill(*given, "--resume", "--set", "trainer.max_steps=6")
    assert resumed.returncode == 0, resumed.stderr
    assert "6 steps" in resumed.stderr + resumed.stdout


def test_a_fresh_process_finds_it_as_an_installed_package(tmp_path):
    path = os.pathsep.join([str(install_template(tmp_path / "site", TEMPLATE)), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "gendistill.cli", "methods"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert "a student and a fake score" in done.stdout, done.stderr


def test_its_name_its_settings_and_its_help_come_from_its_file_alone(gendistill, tiny_folder):
    assert "two_time_scale" in gendistill("distill", "--help").stdout
    wrong = gendistill("distill", tiny_folder, "--method", "two_time_scale", "--set", "two_time_scale.fake_score_step=3")
    assert wrong.returncode == 2
    assert "did you mean two_time_scale.fake_score_steps?" in wrong.stderr
    planned = gendistill("plan", tiny_folder, "--train", "--method", "two_time_scale", "--set", "lora.enabled=true")
    assert planned.returncode == 0, planned.stderr
