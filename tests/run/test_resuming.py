"""A run folder takes one run: nothing in it is replaced, and a run is resumed as it was begun."""

import shutil

import pytest
import yaml
from tiny_runs import settings_of

from gendistill.assets import asset_path
from gendistill.run.config import load_config
from gendistill.run.distill import distill
from gendistill.run.located_paths import located
from gendistill.runtime.files import folder_lock

RUN = {"trainer__max_steps": 1, "trainer__num_validation": 2, "trainer__checkpoint_every": 1, "data__num_synthetic": 2}


@pytest.fixture(scope="module")
def place(tiny_folder, tmp_path_factory):
    """A folder with a run of one step."""
    place = tmp_path_factory.mktemp("resuming")
    distill(settings_of(place, tiny_folder, "run", **RUN))
    return place


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": 5}, "seed is 0, not 5"),
        ({"guidance__scale": 2.5, "lora__rank": 2}, "guidance.scale is 3, not 2.5; lora.rank is 64, not 2"),
        ({"trainer__learning_rate": 1e-3}, "trainer.learning_rate is 0.0002, not 0.001"),
        ({"trainer__num_validation": 3}, "trainer.num_validation is 2, not 3"),
        ({"method": "progressive", "progressive__start_steps": 4}, "method is consistency, not progressive"),
        ({"consistency__ema_decay": 0.5}, "consistency.ema_decay is .*, not 0.5"),
        ({"data__num_synthetic": 3}, "data.num_synthetic is 2, not 3"),
    ],
)
def test_another_setting_is_refused_with_both_values_and_nothing_is_written(place, tiny_folder, changes, sentence):
    before = contents(place / "run")
    with pytest.raises(ValueError, match=f"^out .*run holds a run with other settings: {sentence}.*; expects the settings of"):
        distill(settings_of(place, tiny_folder, "run", **{**RUN, **changes}), resume=True)
    assert contents(place / "run") == before


def test_limits_may_change_and_files_of_a_person_in_the_student_stay(place, tiny_folder):
    shutil.copytree(place / "run", place / "longer")
    (place / "longer" / "student" / "notes.txt").write_text("mine")
    more = {"trainer__max_steps": 2, "trainer__max_minutes": 9, "trainer__gradient_checkpointing": True}
    assert distill(settings_of(place, tiny_folder, "longer", **{**RUN, **more}), resume=True).training.steps == 2
    assert (place / "longer" / "student" / "notes.txt").read_text() == "mine"
    assert yaml.safe_load((place / "longer" / "config.yaml").read_text())["trainer"]["max_steps"] == 2
    assert not list((place / "longer").glob(".*"))


def test_a_run_that_another_process_writes_is_refused_resumed_or_not(place, tiny_folder, tmp_path):
    for name, resume in {"run": True, "new": False}.items():
        (tmp_path / name).mkdir()
        if resume:
            shutil.copytree(place / name, tmp_path / name, dirs_exist_ok=True)
        before = contents(tmp_path)
        with folder_lock(tmp_path / name, "out"), pytest.raises(ValueError, match="is in use by another process"):
            distill(settings_of(tmp_path, tiny_folder, name, **RUN), resume=resume)
        assert contents(tmp_path).keys() - before.keys() <= {tmp_path / "prompts.txt"}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("file", ["cat.jpg", "checkpoints/step-1000/weights", "config.yaml"])
def test_files_that_are_not_of_a_run_are_neither_replaced_nor_removed(tiny_folder, tmp_path, file, resume):
    path = tmp_path / "run" / file
    path.parent.mkdir(parents=True)
    path.write_text("teacher: mine")
    if (file, resume) == ("checkpoints/step-1000/weights", True):  # of another program; ours have names of their own
        distill(settings_of(tmp_path, tiny_folder, "run", **RUN), resume=True)
    else:
        with pytest.raises(ValueError, match=r"out .*(would be lost; expects|holds a run already)"):
            distill(settings_of(tmp_path, tiny_folder, "run", **RUN), resume=resume)
    assert path.read_text() == "teacher: mine"


def test_paths_of_a_run_are_stored_absolute_and_names_of_ours_stay_names(place, tmp_path, monkeypatch):
    stored = yaml.safe_load((place / "run" / "config.yaml").read_text())
    assert stored["out"] == str(place / "run")
    monkeypatch.chdir(tmp_path)
    for folder in ("my-model", "emoji", "images", "sd1"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "a.tar").touch()
    settings = {
        "teacher": "my-model",
        "teacher_config": "sd1",
        "data.path": "images/*.tar",
        "validation_extractor": "emoji",
        "validation_reference": "assets/emoji/heldout-000.tar.gz",
        "out": "run",
        "start": "user/name",
    }
    found = located(load_config(None, settings))
    assert (found.teacher, found.data.path) == (str(tmp_path / "my-model"), str(tmp_path / "images" / "*.tar"))
    assert (found.out, found.data.cache) == (str(tmp_path / "run"), str(tmp_path / ".cache" / "gendistill"))
    assert (found.validation_extractor, found.teacher_config, found.start) == ("emoji", "sd1", "user/name")
    assert found.validation_reference == "assets/emoji/heldout-000.tar.gz"
    assert asset_path(found.validation_reference) != found.validation_reference
