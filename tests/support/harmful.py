"""What is meant to harm, and what is asked of it: nothing of it is run, and it is told in a sentence."""

import io

import pytest
import torch

from gendistill.gan.gan_loading import open_teacher
from gendistill.gan.generator_config import GeneratorConfig


class Harmful:
    """Unpickling it makes a file."""

    def __reduce__(self):
        return open, ("owned", "w")


def harmful_bytes():
    file = io.BytesIO()
    torch.save(Harmful(), file)
    return file.getvalue()


def sentence(teacher, config=None, **settings):
    with pytest.raises(ValueError) as error:  # noqa: PT011  its text is what the tests are about
        open_teacher(teacher, config=config, settings=GeneratorConfig(**settings))
    assert "\n" not in str(error.value)
    return str(error.value)
