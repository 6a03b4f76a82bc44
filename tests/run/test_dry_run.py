"""`distill --dry-run` tells what would happen, and does none of it."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from gendistill import cli
from gendistill.diffusion.trained_networks import full_networks, lora_config, lora_networks
from gendistill.run.config import load_config
from gendistill.run.denoisers import count_parameters
from gendistill.run.distill import distill
from gendistill.run.dry_run import dry_run

NAMES_OF_SD1 = {
    "model.diffusion_model.input_blocks.0.0.weight": (1, 4, 1, 1),
    "first_stage_model.w": (1,),
    "cond_stage_model.transformer.w": (1,),
}


def run(monkeypatch, capsys, *arguments):
    command = ["gendistill", "distill", "teacher", "--prompts", "prompts.txt", "--out", "run", "--dry-run", *arguments]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    shown = capsys.readouterr()
    assert exit_.value.code == 0, shown.err
    return shown.out, " ".join(shown.err.split())


def test_it_prints_a_complete_config_and_a_plan_and_makes_nothing(place, monkeypatch, capsys):
    settings = ("--set=trainer.max_steps=70", "--set=trainer.checkpoint_minutes=5", "--steps=4,1")
    config, plan = run(monkeypatch, capsys, *settings)
    (place / "printed.yaml").write_text(config)
    given = {"teacher": "teacher", "data.prompts": "prompts.txt", "out": "run", "steps": [4, 1]}
    expected = load_config(None, given | {"trainer.max_steps": 70, "trainer.checkpoint_minutes": 5})
    assert load_config(place / "printed.yaml") == expected
    for sentence in (
        "trains: all weights, 0.25 M parameters",
        "data: 2048 images that the teacher generates from 2 prompts of prompts.txt; encoded into .cache/gendistill",
        "steps: 70 of batch 32 (2,240 samples); a validation every 100",
        "checkpoints: every 100 steps or 5 minutes, the last two and the best are kept",
        "the student in run/student",
        "resume: no checkpoint; starts at step 0",
    ):
        assert sentence in plan
    assert sorted(path.name for path in place.iterdir()) == ["printed.yaml", "prompts.txt", "teacher"]


def test_what_alignment_generates_and_what_a_decoder_run_trains_is_told(place, monkeypatch, capsys):
    _, plan = run(monkeypatch, capsys, "--method=latent_alignment", "--set=align.trajectories=77")
    assert "and 77 trajectories of 16 steps that the teacher generates; encoded" in plan
    _, plan = run(monkeypatch, capsys, "--method=decoder", "--set=decoder.width=24")
    assert "trains: a tiny autoencoder with 24 channels" in plan
    assert "trajectories" not in plan


def test_json_holds_both(place, monkeypatch, capsys):
    config, _ = run(monkeypatch, capsys, "--lora", "--json")
    said = json.loads(config)
    assert said["config"]["lora"]["enabled"] is True
    assert said["plan"]["trains"].startswith("a LoRA of rank 64, ")


@pytest.mark.parametrize("mode", [{}, {"lora.enabled": True, "lora.rank": 4}, {"guidance.mode": "embedded"}])
def test_parameters_are_counted_from_the_configs_alone(place, teacher, mode):
    config = load_config(None, {"teacher": "teacher", "data.prompts": "prompts.txt"} | mode)
    total, trained = count_parameters(place / "teacher", teacher.family, config)
    assert total == sum(parameter.numel() for parameter in teacher.network.parameters())
    embedding = 256 if config.guidance.mode == "embedded" else None
    networks = (
        lora_networks(teacher.denoiser, lora_config(teacher.family.lora_targets, 4))
        if config.lora.enabled
        else full_networks(teacher.denoiser, embedding)
    )
    assert trained == sum(parameter.numel() for parameter in networks.trained.values())


@pytest.mark.parametrize("family", ["sdxl", "classes"])
def test_every_family_has_a_plan(family_folder, place, family):
    teacher = str(family_folder(family))
    plan = dry_run(load_config(None, {"teacher": teacher} | ({"data.prompts": "prompts.txt"} if family == "sdxl" else {})))
    assert "M parameters" in plan.teacher
    assert ("all of its prompts" in plan.data) == (family == "classes")


def test_a_checkpoint_file_has_a_plan_without_its_weights_being_read(place):
    save_file({name: torch.zeros(shape) for name, shape in NAMES_OF_SD1.items()}, place / "model.safetensors")
    plan = dry_run(load_config(None, {"teacher": "model.safetensors", "data.prompts": "prompts.txt"}))
    assert plan.teacher == "model.safetensors, a StableDiffusionPipeline of 859.52 M parameters"


def test_a_teacher_on_the_hub_is_not_looked_up(place):
    plan = dry_run(load_config(None, {"teacher": "someone/something", "data.prompts": "prompts.txt"}))
    assert (plan.teacher, plan.trains) == ("someone/something, on the hub", "all weights")


def test_a_run_that_is_there_is_gone_on_with_or_refused(place):
    (place / "run" / "checkpoints" / "step-00000040").mkdir(parents=True)
    config = load_config(None, {"teacher": "teacher", "data.prompts": "prompts.txt", "out": "run"})
    assert dry_run(config, resume=True).resume == "resumes from step-00000040"
    with pytest.raises(ValueError, match="holds a run already; expects --resume"):
        dry_run(config)


@pytest.mark.parametrize("part", ["student", "student-2", "config.yaml", "log.jsonl", "stages", "checkpoints"])
def test_whatever_a_run_has_left_is_refused_without_resume_and_a_student_without_checkpoints_always(place, part):
    (place / "run" / part).mkdir(parents=True)
    config = load_config(None, {"teacher": "teacher", "data.prompts": "prompts.txt", "out": "run"})
    for of in (dry_run, distill):
        with pytest.raises(ValueError, match="out run holds a run already; expects --resume, or another folder"):
            of(config)
        if part.startswith("student"):
            with pytest.raises(ValueError, match=f"holds {part} but no checkpoint of it to resume from.*another folder"):
                of(config, resume=True)
    assert [path.name for path in (place / "run").iterdir()] == [part]


@pytest.mark.parametrize("method", ["gan", "decoder"])
def test_a_student_of_any_method_is_not_replaced_by_a_second_run(place, gans, method):
    (place / "run" / "student").mkdir(parents=True)
    teacher = {"gan": {"teacher": str(gans["teacher"])}, "decoder": {"teacher": "teacher", "data.prompts": "prompts.txt"}}[
        method
    ]
    config = load_config(None, {"method": method, "out": "run", **teacher})
    for resume, sentence in {False: "holds a run already", True: "holds student but no checkpoint"}.items():
        with pytest.raises(ValueError, match=sentence):
            distill(config, resume=resume)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"teacher": "nowhere/at/all"}, "model nowhere/at/all does not exist"),
        ({"data.prompts": "nowhere.txt"}, "'nowhere.txt' cannot be read"),
        ({"data.prompts": None}, "expects one of them"),
        ({"teacher_revision": "main"}, "teacher_revision main: expects a hub id"),
    ],
)
def test_mistakes_are_told(place, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        dry_run(load_config(None, {"teacher": "teacher", "data.prompts": "prompts.txt"} | settings))


def test_a_teacher_on_the_command_line_overrides_the_file_also_where_it_is_the_default(place, monkeypatch, capsys):
    (place / "mine.yaml").write_text("teacher: teacher\ndata: {prompts: prompts.txt}\n")
    for given, teacher in {("assets/tiny-sd",): "assets/tiny-sd", (): "teacher"}.items():
        monkeypatch.setattr(sys, "argv", ["gendistill", "distill", *given, "--config", "mine.yaml", "--dry-run"])
        with pytest.raises(SystemExit):
            cli.main()
        assert f"teacher: {teacher}\n" in capsys.readouterr().out
