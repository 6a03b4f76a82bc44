import gc
import os

import pytest
import torch
from random_gans import random_gans
from tiny_families import TINY
from tiny_pipeline import tiny_pipeline

from gendistill.diffusion.teacher import load_teacher
from gendistill.run.config import load_config
from gendistill.run.distill import distill

# Networks of these sizes are no faster on several threads, and where another program computes at the same time threads that
# wait for one another are a hundred times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# Modules and collected tests live as long as the process. A garbage collection that visits them takes 0.3 s, and every run
# makes several.
gc.disable()


def pytest_collection_finish():
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The folder of a tiny random pipeline."""
    folder = tmp_path_factory.mktemp("tiny-pipeline")
    tiny_pipeline(folder / "tokenizer-of-its-own").save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory):
    """family_folder("sdxl"): the folder of a tiny random pipeline of that family."""
    made = {}

    def folder_of(name):
        if name not in TINY:
            pytest.skip(f"{name} cannot be built with these versions")
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            TINY[name](made[name] / "tokenizer-of-its-own").save_pretrained(made[name] / "pipeline")
        return made[name] / "pipeline"

    return folder_of


@pytest.fixture(scope="session")
def evaluation_cache(tmp_path_factory):
    """A cache of features and images for evaluations that test something else."""
    return tmp_path_factory.mktemp("evaluation-cache")


@pytest.fixture(scope="session")
def halved_run(tiny_folder, tmp_path_factory):
    """A run that left two students with a slider, after a step of training each."""
    place = tmp_path_factory.mktemp("halved")
    (place / "prompts.txt").write_text("food\nanimals\n")
    settings = {
        "teacher": str(tiny_folder),
        "method": "progressive",
        "steps": [2, 1],
        "device": "cpu",
        "out": str(place / "run"),
        "data.prompts": str(place / "prompts.txt"),
        "data.num_synthetic": 4,
        "data.synthetic_steps": 2,
        "data.cache": str(place / "cache"),
        "guidance.mode": "embedded",
        "guidance.range": [1, 4],
        "progressive.start_steps": 4,
        "trainer.max_steps": 1,
        "trainer.batch_size": 2,
        "trainer.num_validation": 2,
        "trainer.trackers": [],
    }
    distill(load_config(None, settings))
    return place / "run"


@pytest.fixture
def place(tiny_folder, tmp_path, monkeypatch):
    """The working folder, with a good teacher and good prompts."""
    (tmp_path / "teacher").symlink_to(tiny_folder)
    (tmp_path / "prompts.txt").write_text("food\nanimals\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def teacher(tiny_folder):
    """The tiny random pipeline, opened anew for each test."""
    return load_teacher(tiny_folder)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def gans(tmp_path_factory):
    """Folders of tiny random GANs, by name."""
    return random_gans(tmp_path_factory.mktemp("gans"))
