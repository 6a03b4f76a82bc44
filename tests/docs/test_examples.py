"""The worked examples run, as scripts and as notebooks, and their results show themselves."""

import re
import runpy
import sys

import jupytext
import pytest
from code_blocks import ROOT
from nbclient import NotebookClient

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SMALL = {"STEPS": 1, "IMAGES": 4, "PAIRS": 4, "EVALUATED": 8}


def in_small(example):
    """The text of an example with small numbers in place of its own."""
    text = example.read_text()
    names, rest = re.search(r"^([A-Z, ]+) = ([\d, ]+)(?=  #)", text, re.MULTILINE).groups()
    return text.replace(f"{names} = {rest}", f"{names} = {', '.join(str(SMALL[name]) for name in names.split(', '))}")


SLOW = "compress_a_generator"


@pytest.mark.parametrize(
    "example",
    [pytest.param(file, marks=pytest.mark.slow if file.stem == SLOW else (), id=file.stem) for file in EXAMPLES],
)
def test_it_runs_as_a_script(example, small, monkeypatch):
    script = small / example.name
    script.write_text(in_small(example))
    monkeypatch.setattr(sys, "argv", [str(script)])
    names = runpy.run_path(str(script), run_name="__main__")
    result = names.get("comparison", names.get("result"))
    assert "<p>" in result._repr_html_()


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_it_runs_as_a_notebook(example, tmp_path):
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    notebook = jupytext.reads(in_small(example), fmt="py:percent")
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert any("data:image/png;base64" in data.get("text/html", "") for data in shown)
