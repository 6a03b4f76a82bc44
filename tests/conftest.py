import pytest
import torch
from tiny_pipeline import tiny_pipeline

from gendistill.diffusion.pipeline import load_teacher


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The folder of a tiny random pipeline."""
    folder = tmp_path_factory.mktemp("tiny-pipeline")
    tiny_pipeline(folder / "tokenizer-of-its-own").save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture
def teacher(tiny_folder):
    """The tiny random pipeline, opened anew for each test."""
    return load_teacher(tiny_folder)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
