"""What a person gets who installs the wheel with the core's dependencies alone."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from types import SimpleNamespace

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
    subprocess.run(build, check=True)
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


def test_an_asset_is_found_from_any_folder_and_what_matches_in_ones_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert asset_names() == ["emoji", "emoji-features", "tiny-clip", "tiny-gan", "tiny-sd", "tiny-sd3"]
    assert asset_path("assets/tiny-sd") == asset_path("tiny-sd") == str(ASSETS / "tiny-sd")
    assert asset_path("assets/emoji/train-*.tar.gz") == str(ASSETS / "emoji" / "train-*.tar.gz")
    for other in ("assets", "assets/others", "hf://datasets/a/b", "some/tiny-sd", "tiny-sd/../x", "/assets/tiny-sd", ""):
        assert asset_path(other) == other
    (tmp_path / "assets" / "emoji").mkdir(parents=True)
    assert asset_path("assets/emoji/train-*.tar.gz") == str(ASSETS / "emoji" / "train-*.tar.gz")
    assert asset_path("assets/emoji/mine.tar") == "assets/emoji/mine.tar"
    (tmp_path / "assets" / "emoji" / "train-0.tar.gz").touch()
    assert asset_path("assets/emoji/train-*.tar.gz") == "assets/emoji/train-*.tar.gz"


def test_a_preset_is_found_by_its_name_and_a_file_of_ones_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert preset_path("demo") == preset_path("configs/demo.yaml") == PRESETS["demo"]
    with pytest.raises(ValueError, match=r"config dmeo does not exist; .* preset: alignment, .*; did you mean demo\?"):
        preset_path("dmeo")
    (tmp_path / "demo").write_text("seed: 1\n")
    assert preset_path("demo") == Path("demo")


def test_a_config_of_accelerate_launch_is_found_by_its_name(tmp_path):
    done = subprocess.run([sys.executable, "-m", "gendistill.configs", "ddp"], cwd=tmp_path, capture_output=True, text=True)
    assert Path(done.stdout.strip()).samefile(ROOT / "configs" / "accelerate" / "ddp.yaml")


def as_nobody(folder):
    """The start of a command that another user runs; nothing where there is no such user, or where it cannot read Python."""
    start = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        return []
    probe = subprocess.run([*start, sys.executable, "-c", "import torch"], cwd=folder, capture_output=True)
    return start if probe.returncode == 0 else []


@pytest.fixture
def stranger(installed):
    """stranger(): the start of a command of another user in an empty folder, with all extras; the wheel is read-only."""
    place = Path(tempfile.mkdtemp(prefix="installed-"))  # pytest's folders are closed to other users
    place.chmod(0o755)
    shutil.copytree(installed, place / "site")
    for name in ("home", "work"):
        (place / name).mkdir()
    start = as_nobody(place)
    if start:
        for name in ("home", "work"):
            os.chown(place / name, 65534, 65534)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_", "PYTHON", "MPL"))}
    environment = kept | {
        "HOME": str(place / "home"),
        "PYTHONPATH": str(place / "site"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    yield SimpleNamespace(start=[*start, sys.executable], place=place / "work", environment=environment)
    shutil.rmtree(place)


SMALL = ("trainer.max_steps=2", "trainer.batch_size=4", "trainer.num_validation=4", "data.num_synthetic=8", "device=cpu")
DISTIL = ["--prompts", "prompts.txt", *(f"--set={setting}" for setting in (*SMALL, "data.synthetic_steps=2"))]
EXPORTS = {"diffusers": "folder", "checkpoint": "mine-4-steps.safetensors", "onnx": "onnx", "openvino": "openvino"}


@pytest.mark.slow
def test_the_commands_of_the_readme_run_from_a_read_only_wheel_in_an_empty_folder_as_another_user(stranger):
    work, run = stranger.place, {"cwd": stranger.place, "env": stranger.environment, "text": True}
    few_emoji(work / "few.tar")
    shutil.copytree(ASSETS / "tiny-sd", work / "my-model")
    (work / "prompts.txt").write_text("google emoji of food fruit\ngoogle emoji of animal mammal\n")
    for path in work.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    commands = [
        ["distill", "my-model/", "--out", "runs/mine", *DISTIL],
        ["distill", "assets/tiny-sd", "--lora", "--out", "runs/lora", *DISTIL],
        ["sample", "runs/mine/student", "--prompt", "a red car", "--out", "car.v1.5.png"],
        ["evaluate", "runs/mine/student", "--reference", "few.tar", "--num", "8", "--out", "runs/mine", "--no-intervals"],
        *(["export", "runs/mine/student", "--format", kind, "--out", out] for kind, out in EXPORTS.items()),
        *(["export", "runs/lora/student", "--format", kind, "--out", f"{kind}.safetensors"] for kind in ("lora", "kohya")),
        ["plan", "runs/mine/student", "--memory", "8"],
    ]
    done = subprocess.run([*stranger.start, "-c", COMMANDS, json.dumps(commands)], capture_output=True, **run)
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["codes"] == [0] * len(commands), done.stderr
    assert Path(outcome["from"]).is_relative_to(work.parent / "site")
    written = [*(work / "runs").rglob("*"), *(work / name for name in EXPORTS.values())]
    assert {path for path in written if path.is_file() and path.stat().st_mode & 0o777 != 0o644} == set()
    assert {"evaluation.json", "report.html"} <= {path.name for path in (work / "runs" / "mine").iterdir()}

    serve = [*stranger.start, "-m", "gendistill.cli", "serve", "runs/mine/student", "--no-teacher", "--port", "0"]
    with subprocess.Popen(serve, stderr=subprocess.PIPE, **run) as server:
        try:
            line = next(line for line in server.stderr if " at http" in line)
            address = re.search(r"http://[\w.:]+", line)[0]
            body = json.dumps({"prompt": "a red car", "response_format": "b64_json"}).encode()
            request = urllib.request.Request(f"{address}/v1/images/generations", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=120) as answer:
                assert json.load(answer)["data"][0]["b64_json"]
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(60) in (0, 130)
