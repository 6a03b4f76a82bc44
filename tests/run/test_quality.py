"""The claim that the README makes, measured by the commands that it names."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_demo_closes_half_of_the_gap_to_the_teacher(tmp_path):
    def gendistill(*command):
        subprocess.run([sys.executable, "-m", "gendistill.cli", *command], check=True)

    gendistill("distill", "--config", "configs/demo.yaml", "--out", str(tmp_path))
    gendistill("evaluate", str(tmp_path / "student"), "--caption", "subcategory", "--out", str(tmp_path))
    result = json.loads((tmp_path / "evaluation.json").read_text())
    closed = {gap["network_calls"]: gap["closed"] for gap in result["gaps"]}
    assert closed[4] >= 0.5
    assert closed[2] >= 0.5
    assert closed[1] >= 0.4
