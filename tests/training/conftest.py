from functools import partial

import pytest
from tiny_training import tiny_data, tiny_trainer


@pytest.fixture(scope="module")
def data(tiny_folder, tmp_path_factory):
    return tiny_data(tiny_folder, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def trainer(tiny_folder, data):
    """trainer(folder, validate=..., lora=..., **settings of TrainerConfig): a fresh one, as a fresh process makes it."""
    return partial(tiny_trainer, tiny_folder, data)
