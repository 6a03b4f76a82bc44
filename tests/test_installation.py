"""What a person gets who installs the wheel with the core's dependencies alone."""

import json
import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gendistill.assets import ASSETS, asset_names, asset_path
from gendistill.configs import PRESETS, preset_path
from gendistill.runtime.extras import EXTRAS, MissingExtraError, missing_extras_named

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "gendistill", "samplers", "schedulers", "metrics", "assets", "configs")

# Makes the environment appear to lack `HIDDEN_PACKAGES`.
HIDING = """
import os, sys

HIDDEN = frozenset(os.environ["HIDDEN_PACKAGES"].split())

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *where):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, *where)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Hiding, sys.meta_path)
"""
# Runs one command after the other, of which each is a list of arguments, and prints their exit codes.
COMMANDS = """
import json, sys
import gendistill
from gendistill.cli import main

codes = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["gendistill", *arguments]
    try:
        codes.append(main())
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps({"codes": codes, "from": gendistill.__file__, "loaded": [name for name in sys.modules if "." not in name]}))
"""


def closure(requirements):
    """The names of all packages that these requirements bring, themselves among them."""
    found, waiting = set(), [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key in found:
            continue
        found.add(key)
        try:
            needed = [Requirement(text) for text in requires(requirement.name) or ()]
        except PackageNotFoundError:  # of another platform
            continue
        extras = [*requirement.extras, ""]
        waiting += [
            each for each in needed if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)
        ]
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the installed wheel, which nobody may write to."""
    place = tmp_path_factory.mktemp("wheel")
    (place / "source").mkdir()
    for name in SHIPPED:
        (place / "source" / name).symlink_to(ROOT / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", place, place / "source"]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(place.glob("*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", place / "site", wheel], check=True)
    for path in (place / "site").rglob("*"):
        path.chmod(path.stat().st_mode & ~0o222)
    return place / "site"


@pytest.fixture(scope="module")
def environment(installed, tmp_path_factory):
    """Variables of an environment that has the core and its dependencies alone, and another home."""
    core = closure(PROJECT["dependencies"])
    distributions = {name: {canonicalize_name(each) for each in names} for name, names in packages_distributions().items()}
    hidden = [name for name, names in distributions.items() if not names & (core | {"gendistill"})]
    assert {"open_clip", "torchvision", "scipy", "matplotlib", "datasets", "gradio", "onnx", "tensorboard"} <= set(hidden)
    place = tmp_path_factory.mktemp("home")
    (place / "sitecustomize.py").write_text(HIDING)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_", "PYTHON"))}
    paths = f"{place}{os.pathsep}{installed}"
    return variables | {
        "HOME": str(place),
        "PYTHONPATH": paths,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HIDDEN_PACKAGES": " ".join(hidden),
        "OMP_NUM_THREADS": "1",
    }


def few_emoji(shard):
    """A shard with the first emoji of the embedded ones."""
    with tarfile.open(ASSETS / "emoji" / "heldout-000.tar.gz") as archive, tarfile.open(shard, "w") as few:
        for member in archive.getmembers()[:24]:
            few.addfile(member, archive.extractfile(member))


def test_the_core_of_a_wheel_samples_and_distils_in_an_empty_folder_and_names_the_extra_that_evaluates(
    installed, environment, tmp_path
):
    few_emoji(tmp_path / "few.tar")
    before = {path: path.stat().st_mtime_ns for path in installed.rglob("*")}
    small = ("data.path=few.tar", "trainer.max_steps=2", "trainer.batch_size=4", "trainer.num_validation=4", "solvers=[ddim]")
    commands = [
        ["sample", "--prompt", "google emoji of food fruit", "--steps", "2", "--device", "cpu"],
        ["demo", "--out", "run", *(f"--set={setting}" for setting in (*small, "device=cpu"))],
        ["evaluate", "run/student"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    outcome, errors = json.loads(done.stdout.splitlines()[-1]), " ".join(done.stderr.split())
    assert outcome["codes"] == [0, 0, 2], errors
    assert Path(outcome["from"]).is_relative_to(installed)
    assert not set(outcome["loaded"]) & set(EXTRAS)
    assert (tmp_path / "sample.png").is_file()
    assert {"student", "images.png", "log.jsonl", "config.yaml"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert "see run/images.png" in errors
    sentence = r"\w+ is not installed, and it is needed here: pip install 'gendistill\[evaluate\]'"
    assert re.search(f"no report: {sentence}", errors)
    assert re.search(f"error: {sentence}$", errors)
    assert "torchvision" not in re.sub(sentence, "", errors)  # no library warns of what we do without
    assert {path: path.stat().st_mtime_ns for path in installed.rglob("*")} == before


def test_help_imports_no_library_that_takes_long(tmp_path):
    done = subprocess.run([sys.executable, "-c", COMMANDS, '[["--help"]]'], cwd=tmp_path, capture_output=True, text=True)
    loaded = done.stdout.splitlines()[-1]
    assert '"codes": [0]' in loaded, done.stderr
    assert not [name for name in ("torch", "numpy", "diffusers", "transformers", "PIL") if f'"{name}"' in loaded]


def test_a_missing_package_of_an_extra_is_an_import_error_in_python_that_names_the_extra():
    with (
        pytest.raises(MissingExtraError, match=r"^gradio is not .*: pip install 'gendistill\[serve\]'$"),
        missing_extras_named(),
    ):
        raise ModuleNotFoundError(name="gradio.blocks")
    with pytest.raises(ModuleNotFoundError, match="torch"), missing_extras_named():
        raise ModuleNotFoundError("torch", name="torch")


def test_each_extra_brings_the_packages_that_it_is_named_for():
    distributions = packages_distributions()
    core = closure(PROJECT["dependencies"])
    for package, extra in EXTRAS.items():
        if package in distributions:  # not torchao and the like, which are for some machines
            brought = closure(PROJECT["optional-dependencies"][extra]) | {"gendistill"}
            brought |= closure(PROJECT["optional-dependencies"]["onnx"]) if extra == "openvino" else set()
            assert {canonicalize_name(name) for name in distributions[package]} & brought, (package, extra)
            assert not {canonicalize_name(name) for name in distributions[package]} & core, package


def test_an_asset_is_found_from_any_folder_and_a_folder_of_ones_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert asset_names() == ["emoji", "emoji-features", "tiny-clip", "tiny-gan", "tiny-sd"]
    assert asset_path("assets/tiny-sd") == asset_path("tiny-sd") == str(ASSETS / "tiny-sd")
    assert asset_path("assets/emoji/train-*.tar.gz") == str(ASSETS / "emoji" / "train-*.tar.gz")
    for other in ("assets", "assets/others", "hf://datasets/a/b", "some/tiny-sd", "tiny-sd/../x", "/assets/tiny-sd", ""):
        assert asset_path(other) == other
    (tmp_path / "assets" / "emoji").mkdir(parents=True)
    assert asset_path("assets/emoji/train-*.tar.gz") == "assets/emoji/train-*.tar.gz"


def test_a_preset_is_found_by_its_name_and_a_file_of_ones_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert preset_path("demo") == preset_path("configs/demo.yaml") == PRESETS["demo"]
    with pytest.raises(ValueError, match=r"config dmeo does not exist; .* preset: alignment, .*; did you mean demo\?"):
        preset_path("dmeo")
    (tmp_path / "demo").write_text("seed: 1\n")
    assert preset_path("demo") == Path("demo")
