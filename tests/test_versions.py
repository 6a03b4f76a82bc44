"""The lowest versions that pyproject.toml declares: `make test-lowest` installs them, and reads what the newest ones write."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models_between_versions import sample, write
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# gradio demands newer versions of other packages than ours; the others are for CUDA GPUs or for our own work.
LEFT_OUT = {"serve", "eight-bit", "torchao", "all", "peers", "docs", "dev"}


def bound_of(requirement, operator):
    [bound] = [each for each in requirement.specifier if each.operator == operator]
    return Version(bound.version)


def test_the_constraints_of_the_lowest_environment_are_the_bounds_of_pyproject():
    extras = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *(text for name in extras.keys() - LEFT_OUT for text in extras[name])]
    requirements = [each for each in map(Requirement, texts) if each.name != "gendistill"]
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    constraints = [Requirement(line.partition("#")[0]) for line in lines if line.partition("#")[0].strip()]
    bounds = {each.name: bound_of(each, ">=") for each in requirements}
    assert {each.name: bound_of(each, "==") for each in constraints} == bounds
    assert len(constraints) == len(bounds)


@pytest.mark.skipif("OTHER_PYTHON" not in os.environ, reason="make test-lowest names the Python of the newest versions")
@pytest.mark.parametrize("written_here", [True, False])
def test_the_lowest_and_the_newest_versions_sample_the_same_images_from_what_each_other_wrote(written_here, tmp_path):
    def other(task):
        command = [os.environ["OTHER_PYTHON"], Path(__file__).parent / "support" / "models_between_versions.py", task, tmp_path]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})

    if written_here:
        write(tmp_path)
    else:
        other("write")
    other("sample")
    theirs, ours = torch.load(next(tmp_path.glob("images-*.pt")), weights_only=True), sample(tmp_path)
    assert ours.keys() == theirs.keys()
    for name, image in ours.items():
        torch.testing.assert_close(image, theirs[name], atol=1e-3, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert not torch.allclose(ours["lora"], ours["sd1 in diffusers"], atol=1e-3)
