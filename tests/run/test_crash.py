"""Nothing is lost: real processes are killed, stopped and starved; what they leave goes on to the same bits."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from random import Random

import pytest
import yaml
from fresh_process import count_writes, die_at_write, gendistill, limit
from PIL import Image
from tiny_pipeline import ROOT
from tiny_training import TINY_RUN

from gendistill.training.checkpoint import Checkpoints

MAX_STEPS = 9
SETTINGS = {
    **TINY_RUN,
    "trainer.max_steps": MAX_STEPS,
    "trainer.batch_size": 2,
    "trainer.checkpoint_every": 2,
    "trainer.validate_every": 3,
    "trainer.num_validation": 4,
}


@pytest.fixture(scope="module")
def place(tiny_folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("crash")
    (place / "teacher").symlink_to(tiny_folder)
    (place / "prompts.txt").write_text("food\nemoji of animals\n")
    return place


@pytest.fixture(scope="module")
def distill(place):
    """distill(run, **options of FreshProcess): a process that trains in the folder `run`, or goes on there."""

    def start(run, settings=None, resume=True, **options):
        given = {**SETTINGS, "data.cache": run.parent / f"{run.name}-cache", **(settings or {})}
        arguments = ["teacher", "--prompts", "prompts.txt", "--out", run, "--steps", "2"]
        arguments += [f"--set={name}={value}" for name, value in given.items()] + ["--resume"] * resume
        run.parent.mkdir(parents=True, exist_ok=True)
        return gendistill(["distill", *arguments], run.with_suffix(".txt"), folder=place, **options)

    return start


@pytest.fixture(scope="module")
def uninterrupted(place, distill):
    """What a run leaves that nobody disturbs, the seconds it takes, and how often it writes."""
    run, counted = place / "uninterrupted", place / "writes"
    started = time.monotonic()
    process = distill(run, before=partial(count_writes, run, counted))
    assert process.wait() == 0, process.text
    return left_by(run), time.monotonic() - started, counted.stat().st_size


def left_by(run):
    """All that a run is for: weights, optimizer and student to the bit; states and log but for the seconds."""
    files = [*(run / "checkpoints").rglob("*.safetensors"), *(run / "student").rglob("*.safetensors")]
    states = {path: json.loads(path.read_text()) for path in (run / "checkpoints").rglob("state.json")}
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {
        "weights": {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "states": {str(path.relative_to(run)): without_times(state) for path, state in states.items()},
        "log": [without_times(line) for line in lines],
        "spec": without_times(json.loads((run / "student" / "gendistill.json").read_text())),
        "checkpoints": sorted(path.name for path in (run / "checkpoints").iterdir()),
    }


def without_times(state):
    return {name: value for name, value in state.items() if name not in ("seconds", "log_size", "teacher_relative")}


def assert_nothing_is_half_written(run):
    checkpoints = Checkpoints(run / "checkpoints")
    for path in checkpoints.folder.glob("[!.]*"):
        assert checkpoints.damage(path.name) is None
    if (run / "config.yaml").exists():
        assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == MAX_STEPS
    for image in (run / "samples").glob("[!.]*"):
        Image.open(image).load()
    if (run / "student").exists():
        assert {"model_index.json", "gendistill.json", "README.md", "unet"} <= {
            path.name for path in (run / "student").iterdir()
        }


@pytest.mark.parametrize("moment", ["of the clock", "of a write"])
@pytest.mark.parametrize("times", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_goes_on_to_the_same_bits(distill, uninterrupted, tmp_path, moment, times):
    expected, seconds, writes = uninterrupted
    random, kills, number = Random(moment), 0, 0
    run = tmp_path / "run-0"
    while kills < times or run.exists():
        trap = None
        if kills < times and moment == "of a write":
            trap = partial(die_at_write, run, random.randrange(1, writes + 1))
        process = distill(run, before=trap)
        if kills < times and moment == "of the clock" and not process.ended_within(random.uniform(0, seconds)):
            process.signal(signal.SIGKILL)
        if (code := process.wait()) == -signal.SIGKILL:
            kills += 1
            assert_nothing_is_half_written(run)
            continue
        assert code == 0, process.text
        assert left_by(run) == expected
        assert not list(run.rglob(".*")), "what a killed process left is gone"
        number += 1
        run = tmp_path / f"run-{number}"
    assert kills == times


@pytest.fixture
def half_done(distill, tmp_path):
    """A run that ended after 4 of its steps, with checkpoints of steps 2 and 4."""
    process = distill(tmp_path / "run", {"trainer.max_steps": 4})
    assert process.wait() == 0, process.text
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == ["step-00000002", "step-00000004"]
    return tmp_path / "run"


def weights_of_last_step(run):
    return {name: digest for name, digest in left_by(run)["weights"].items() if f"step-{MAX_STEPS:08d}" in name}


@pytest.fixture
def last_weights(uninterrupted, place):
    return weights_of_last_step(place / "uninterrupted")


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_short, flip_a_byte])
def test_a_damaged_checkpoint_is_told_in_one_line_and_the_one_before_is_used(distill, last_weights, half_done, damage):
    damage(half_done / "checkpoints" / "step-00000004" / "weights.safetensors")
    process = distill(half_done)
    assert process.wait() == 0, process.text
    line = "checkpoint step-00000004/weights.safetensors is corrupted; resuming from step-00000002"
    assert process.output.read_text().splitlines().count(line) == 1
    assert weights_of_last_step(half_done) == last_weights


def test_where_all_are_damaged_one_sentence_says_so(distill, half_done):
    for name in ("step-00000002", "step-00000004"):
        cut_short(half_done / "checkpoints" / name / "optimizers.safetensors")
    process = distill(half_done)
    assert process.wait() == 2
    assert "holds no intact checkpoint (step-00000004/optimizers.safetensors is corrupted; step-" in process.text
    assert "Traceback" not in process.text


@pytest.fixture
def disk(tmp_path):
    """disk(options): a small disk of its own, which only root can have."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode != 0:
            pytest.skip("no right to mount")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


def assert_whole(run, last):
    """The checkpoints are whole, and nothing half-written lies beside them."""
    checkpoints = Checkpoints(run / "checkpoints")
    assert checkpoints.load_last().name == last
    assert not list(checkpoints.folder.glob(".*"))
    assert_nothing_is_half_written(run)


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(distill, last_weights, disk, tmp_path):
    run = disk("size=32m") / "run"
    cache = {"data.cache": tmp_path / "cache"}
    process = distill(run, {"trainer.max_steps": 2, **cache})
    assert process.wait() == 0, process.text
    disk_now = os.statvfs(run)
    (run / "filler").write_bytes(bytes(disk_now.f_bavail * disk_now.f_frsize - 2_000_000))
    process = distill(run, cache)
    assert process.wait() == 2, process.text
    assert "cannot be written: no space left on device" in process.text
    assert "resume with --resume: step-00000002 is kept" in process.text
    assert "Traceback" not in process.text
    assert_whole(run, "step-00000002")
    (run / "filler").unlink()
    process = distill(run, cache)
    assert process.wait() == 0, process.text
    assert weights_of_last_step(run) == last_weights


def test_a_file_that_may_not_grow_is_one_sentence_too(distill, half_done):
    process = distill(half_done, before=partial(limit, resource.RLIMIT_FSIZE, 1_200_000))
    assert process.wait() == 2, process.text
    assert "cannot be written: file too large" in process.text
    assert "resume with --resume: step-00000004 is kept" in process.text
    assert "Traceback" not in process.text
    assert_whole(half_done, "step-00000004")


def test_a_folder_that_cannot_be_written_to_is_one_sentence_before_anything_else(disk, place, tmp_path):
    folder = disk("size=1m,ro")
    process = gendistill(["distill", "teacher", "--out", folder], tmp_path / "output.txt", folder=place)
    assert process.wait() == 2
    assert process.text == f"error: out {folder} cannot be written to: read-only file system"


def test_memory_that_runs_out_is_one_sentence_that_says_what_would_fit(distill, tmp_path):
    settings = {"trainer.batch_size": 4096, "data.num_synthetic": 4}
    process = distill(tmp_path / "run", settings, before=partial(limit, resource.RLIMIT_AS, 1_000_000_000))
    assert process.wait() == 2, process.text
    assert "Traceback" not in process.text
    assert (
        "out of memory at trainer.batch_size 4096; expects --set trainer.gradient_accumulation_steps=2, "
        "then --set trainer.gradient_checkpointing=true, then --set lora.enabled=true, until it fits"
    ) in process.text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_stopped_run_leaves_the_checkpoint_of_its_last_step_and_names_the_command_that_resumes_it(
    distill, place, tmp_path, number, code
):
    run = tmp_path / "stopped"
    process = distill(run, {"trainer.max_steps": 100_000, "trainer.checkpoint_every": 50_000, "trainer.validate_every": 50_000})
    while not (run / "log.jsonl").exists() or '"step": 7,' not in (run / "log.jsonl").read_text():
        assert not process.ended_within(0.05), process.text
    process.signal(number)
    assert process.wait() == code, process.text
    last = Checkpoints(run / "checkpoints").load_last()
    steps = last.state["step"]
    resume = f"gendistill distill --config {run}/config.yaml --resume"
    assert f"stopped after step {steps}; its checkpoint is saved; to resume, run: {resume}" in process.text
    assert "Traceback" not in process.text
    straight = distill(tmp_path / "straight", {"trainer.max_steps": steps, "trainer.validate_every": 50_000})
    assert straight.wait() == 0, straight.text
    for file in ("weights.safetensors", "optimizers.safetensors"):
        one, other = (Path(folder / "checkpoints" / last.name / file) for folder in (run, tmp_path / "straight"))
        assert one.read_bytes() == other.read_bytes()
    resumed = gendistill([*resume.split()[1:], f"--set=trainer.max_steps={steps + 1}"], tmp_path / "resumed.txt", folder=place)
    assert resumed.wait() == 0, resumed.text
    assert Checkpoints(run / "checkpoints").load_last().state["step"] == steps + 1


def test_an_evaluation_that_ctrl_c_ends_names_the_command_that_continues_it(place, tmp_path):
    for number in range(8):
        Image.effect_noise((32, 32), 20 + number).convert("RGB").save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("food")
    cache, output = tmp_path / "cache", tmp_path / "output.txt"
    command = ["evaluate", "teacher", "--reference", tmp_path, "--num", 2000, "--cache", cache, "--device", "cpu"]
    command += ["--clip", ROOT / "assets" / "tiny-clip", "--extractor", ROOT / "assets" / "emoji-features"]
    process = gendistill(command, output, folder=place)
    while not list(cache.rglob("*.safetensors")):  # the features of the reference
        assert not process.ended_within(0.05), process.text
    process.signal(signal.SIGINT)
    assert process.wait() == 130, process.text
    continued = " ".join(["gendistill", *map(str, command)])
    assert f"stopped; finished work is kept in {cache}; to continue, run: {continued}" in process.text
    assert "Traceback" not in process.text
