"""Every setting of a run is described in words that a stranger understands, with the unit of what is counted."""

import re

import pytest

from gendistill.methods import RECIPES
from gendistill.run.config import config_class
from gendistill.settings.explanation import explanations

SETTINGS = {
    each.name: each for each in explanations(config_class(), {recipe.section: name for name, recipe in RECIPES.items()})
}
UNITS = {
    "steps": r"(^|(?<!accumulation)_)steps$|_every$|num_ddim_timesteps",
    "minutes": "minutes$",
    "pixels": "resolution$",
    "samples": "batch_size$",
}
UNCOUNTED = {"seed", "lora.alpha"}  # whole numbers that count nothing


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_described_by_a_phrase_with_its_unit(name):
    setting = SETTINGS[name]
    assert re.match(r"[A-Z][\w-]*[:,]? .{10,}[^.]$", setting.meaning), setting.meaning
    assert len(setting.meaning) <= 240
    if setting.kind in ("a whole number", "a whole number or null") and name not in UNCOUNTED:
        assert setting.unit, "a whole number counts something"
    last = name.rpartition(".")[2]
    for unit, names in UNITS.items():
        if re.search(names, last):
            assert setting.unit is not None
            assert unit in setting.unit


def test_a_paper_is_cited_with_its_authors_and_year():
    cited = [setting.paper for setting in SETTINGS.values() if setting.paper]
    assert len(cited) > 60
    for paper in cited:
        assert re.match(r"[A-Z].+ (19|20)\d\d, \".+\"(, arXiv:\d{4}\.\d{4,5})?", paper), paper
