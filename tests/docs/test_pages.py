"""The pages keep up with the code."""

import re
import sys

import pytest
from code_blocks import PAGES, ROOT

from gendistill.methods import RECIPES
from gendistill.metrics.registry import METRICS

sys.path.insert(0, str(ROOT / "docs" / "hooks"))
from public_names import TOPS, undocumented

METHOD_PARTS = ("## The mathematics", "## Settings", "## Figures", "## When to choose")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_every_public_name_is_documented():
    assert not list(undocumented())


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("two_time")])
def test_every_method_has_a_page(name):
    text = (ROOT / "docs" / "methods" / f"{name.replace('_', '-')}.md").read_text()
    assert [part for part in METHOD_PARTS if part not in text] == []
    assert f"<!-- settings: {RECIPES[name].section} -->" in text


def test_every_metric_has_a_heading_of_its_name():
    headings = set(re.findall(r"^## (\w+)$", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    assert headings >= {name for name in METRICS if not name.startswith(("nearest", "mean_gap"))}


def test_every_sentence_in_troubleshooting_is_in_the_code():
    code = " ".join(file.read_text() for top in TOPS for file in (ROOT / top).rglob("*.py"))
    code = re.sub(r'"\s+f?"', "", code)  # a sentence over several lines
    for sentence in re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE):
        missing = [part for part in re.split("…|`, `", sentence) if part.strip() not in code]
        assert not missing, sentence


def test_every_image_has_a_text_and_every_link_a_target():
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for alternative, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text):
            assert len(alternative) > 10, f"{page}: {target} has no text"
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"
