import json

import pytest

from gendistill.samplers import StudentSpec
from gendistill.samplers.loading import open_student
from gendistill.schedulers import student_scheduler

SCHEDULER = student_scheduler("lcm", {"beta_schedule": "scaled_linear", "num_train_timesteps": 1000}, "epsilon", 40)


def spec(**changes):
    settings = {
        "method": "consistency",
        "teacher": "assets/tiny-sd",
        "num_inference_steps": (4, 2, 1),
        "solver": "lcm",
        "scheduler_class": "LCMScheduler",
        "scheduler_config": dict(SCHEDULER.config),
        "guidance": "embedded",
        "guidance_scale": 3.0,
        "guidance_range": (1.0, 6.0),
        "figures": {"validation": 1.5},
    }
    return StudentSpec(**{**settings, **changes})


@pytest.mark.parametrize("changes", [{}, {"guidance": "baked", "guidance_range": None, "lora": True}])
def test_a_spec_comes_back_as_it_was_saved(tmp_path, changes):
    spec(**changes).save(tmp_path)
    assert StudentSpec.load(tmp_path) == spec(**changes)


def test_a_loaded_spec_makes_the_scheduler_that_it_was_made_with(tmp_path):
    spec().save(tmp_path)
    scheduler = StudentSpec.load(tmp_path).scheduler()
    assert type(scheduler) is type(SCHEDULER)
    assert dict(scheduler.config) == dict(SCHEDULER.config)


def test_a_folder_without_a_spec_is_no_student(tmp_path):
    assert StudentSpec.load(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"num_inference_steps": 4}', json.dumps({"num_inference_steps": [4]})])
def test_a_broken_spec_is_a_sentence_that_names_the_file(tmp_path, text):
    (tmp_path / "gendistill.json").write_text(text)
    with pytest.raises(ValueError, match=r"gendistill\.json is not a student description of this version"):
        StudentSpec.load(tmp_path)


@pytest.mark.parametrize(
    ("guidance", "scale", "pipeline_scale", "calls"),
    [("embedded", 3.0, 3.0, 4), ("baked", 3.0, 1.0, 4), ("cfg", 3.0, 3.0, 8), ("cfg", 1.0, 1.0, 4)],
)
def test_only_classifier_free_guidance_costs_a_second_call_and_baked_guidance_is_off(guidance, scale, pipeline_scale, calls):
    student = spec(guidance=guidance, guidance_scale=scale)
    assert student.pipeline_guidance_scale == pipeline_scale
    assert student.network_calls(4) == calls


def test_a_teacher_is_found_again_from_any_folder_and_where_the_whole_tree_was_moved(tmp_path, monkeypatch):
    student, teacher = tmp_path / "tree" / "runs" / "a" / "student", tmp_path / "tree" / "my-model"
    for folder in (student, teacher):
        folder.mkdir(parents=True)
    (teacher / "model_index.json").write_text("{}")
    monkeypatch.chdir(tmp_path)

    def named(text):
        (student / "gendistill.json").write_text(text)
        return StudentSpec.load(student).teacher

    spec(teacher=str(teacher)).save(student)
    stored = (student / "gendistill.json").read_text()
    spec(teacher="my-model").save(student)
    of_earlier_versions = (student / "gendistill.json").read_text()
    assert named(stored) == str(teacher)
    assert named(of_earlier_versions) == str(teacher)
    (tmp_path / "tree").rename(tmp_path / "moved")
    student, moved = tmp_path / "moved" / "runs" / "a" / "student", str(tmp_path / "moved" / "my-model")
    assert named(stored) == named(of_earlier_versions) == moved
    (tmp_path / "moved" / "my-model").rename(tmp_path / "elsewhere")
    assert named(stored) == str(teacher)
    spec(teacher=str(teacher), lora=True).save(student)
    with pytest.raises(ValueError, match=rf"is a LoRA of {teacher}, which does not exist; expects .* `teacher` in .*\.json$"):
        open_student(student)
    for teacher in ("assets/tiny-sd", "user/name"):
        spec(teacher=teacher).save(student)
        assert StudentSpec.load(student).teacher == teacher
