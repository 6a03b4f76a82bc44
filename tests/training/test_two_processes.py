"""Two processes make what one makes: the same loss curve at the same global batch, and checkpoints for each other."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from fresh_process import FreshProcess, gendistill, together
from safetensors.torch import load_file, save_file
from tiny_training import TINY_RUN, tiny_data, tiny_trainer

from gendistill.training.checkpoint import Checkpoints

CPU = Path(__file__).parents[2] / "configs" / "accelerate" / "cpu.yaml"
SETTINGS = {
    **TINY_RUN,
    "trainer.max_steps": 8,
    "trainer.batch_size": 4,
    "trainer.checkpoint_every": 4,
    "trainer.validate_every": 4,
    "trainer.num_validation": 5,
}


@pytest.fixture(scope="module")
def place(tiny_folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("processes")
    (place / "teacher").symlink_to(tiny_folder)
    (place / "prompts.txt").write_text("food\nemoji of animals\n")
    return place


def arguments(run, settings):
    given = {**SETTINGS, "data.cache": "cache", **settings}
    options = ["teacher", "--prompts", "prompts.txt", "--out", run, "--steps", "2", "--resume"]
    return ["distill", *options, *(f"--set={name}={value}" for name, value in given.items())]


@pytest.fixture(scope="module")
def distill(place):
    """distill(run, processes, settings): their outputs, once all have ended, and their exit codes."""

    def train(run, processes=1, **settings):
        given = arguments(run, {name.replace("__", "."): value for name, value in settings.items()})
        if processes == 1:
            started = [gendistill(given, place / f"{run}.txt", folder=place)]
        else:
            started = together(
                processes,
                lambda rank, environment: gendistill(given, place / f"{run}-{rank}.txt", folder=place, environment=environment),
            )
        return started, [process.wait() for process in started]

    return train


@pytest.fixture(scope="module")
def alone(place, distill):
    """The run of one process."""
    (process,), codes = distill("alone")
    assert codes == [0], process.text
    return place / "alone"


def losses(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def assert_same_curve(run, other, steps=8):
    assert list(losses(run)) == list(range(1, steps + 1))
    assert losses(run) == pytest.approx(losses(other), abs=1e-5, rel=0)


def test_two_processes_make_the_loss_curve_of_one(distill, place, alone):
    processes, codes = distill("two", 2)
    assert codes == [0, 0], [process.text for process in processes]
    assert_same_curve(place / "two", alone)
    scores = [Checkpoints(run / "checkpoints").load_last().state["best"]["score"] for run in (place / "two", alone)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    assert (place / "two" / "student" / "model_index.json").exists()
    one, other = ({path.name for path in (run / "samples").iterdir()} for run in (place / "two", alone))
    assert one == other
    assert "sampled by" in processes[0].text
    assert processes[1].text == ""


def test_a_lora_its_fake_score_and_its_discriminators_do_too_on_a_batch_that_is_split(distill, place):
    settings = {"method": "distribution_matching", "distribution_matching__fake_score__steps": 1}
    settings |= {"lora__enabled": "true", "lora__rank": 4, "trainer__gradient_accumulation_steps": 2}
    settings |= {"align__weight": 1, "align__distribution__adversarial": 0.1}
    settings |= {"adversarial__weight": 0.1, "adversarial__features": "fake_score"}
    settings |= {"align__trajectories": 8, "align__trajectory_steps": 4}
    for run, processes in (("lora-alone", 1), ("lora-two", 2)):
        started, codes = distill(run, processes, **settings)
        assert codes == [0] * processes, [process.text for process in started]
    assert_same_curve(place / "lora-two", place / "lora-alone")


def test_stages_follow_one_another_on_two_processes_as_on_one(distill, place):
    settings = {"method": "progressive", "progressive__start_steps": 4, "trainer__max_steps": 3}
    for run, processes in (("stages-alone", 1), ("stages-two", 2)):
        started, codes = distill(run, processes, **settings)
        assert codes == [0] * processes, [process.text for process in started]
    for stage in ("guidance_distillation", "2"):
        assert_same_curve(place / "stages-two" / "stages" / stage, place / "stages-alone" / "stages" / stage, 3)
    assert (place / "stages-two" / "student-2" / "model_index.json").exists()


def test_a_run_of_two_goes_on_as_one_and_a_run_of_one_as_two(distill, place, alone):
    for run, before, after in (("shrinking", 2, 1), ("growing", 1, 2)):
        _, codes = distill(run, before, trainer__max_steps=4)
        assert codes == [0] * before
        _, codes = distill(run, after)
        assert codes == [0] * after
        assert_same_curve(place / run, alone)


def test_a_batch_that_cannot_be_divided_is_one_sentence(distill):
    processes, codes = distill("uneven", 2, trainer__batch_size=5)
    assert codes == [2, 2]
    sentence = (
        "error: trainer.batch_size 5: expects a multiple of the processes (2) times "
        "trainer.gradient_accumulation_steps (1), such as 4"
    )
    assert [process.text for process in processes] == [sentence, sentence]


def test_a_signal_to_one_of_two_stops_both_after_the_same_step(place):
    given = arguments("stopped", {"trainer.max_steps": 100_000, "trainer.validate_every": 100_000})
    processes = together(
        2,
        lambda rank, environment: gendistill(given, place / f"stopped-{rank}.txt", folder=place, environment=environment),
    )
    log = place / "stopped" / "log.jsonl"
    while not log.exists() or '"step": 3,' not in log.read_text():
        assert not processes[0].ended_within(0.05), processes[0].text
    processes[1].signal(signal.SIGTERM)
    assert [process.wait() for process in processes] == [143, 143]
    step = Checkpoints(place / "stopped" / "checkpoints").load_last().state["step"]
    for process in processes:
        assert f"stopped after step {step}; its checkpoint is saved" in process.text


def train_in_shards(folder, teacher_folder, steps, sharded, **settings):
    """What one of several processes does: train, then write down the average that it holds."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    from torch.distributed.tensor import DTensor

    rank = os.environ["RANK"]
    data = tiny_data(teacher_folder, folder / f"cache-{rank}")
    trainer = tiny_trainer(teacher_folder, data, folder, max_steps=steps, log_every=1, **settings)
    if sharded:  # accelerate offers FSDP on accelerators only; what it does there works on a CPU as well
        for state in (PartialState, AcceleratorState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
        )
    trainer.train(resume=True)
    networks = trainer.method.networks
    assert any(isinstance(parameter, DTensor) for parameter in networks.trained.values()) == sharded
    save_file(networks.average_state(), folder / f"average-{rank}.safetensors")


def run_in_shards(place, folder, teacher, steps, processes, sharded, **settings):
    folder.mkdir(exist_ok=True)
    work = partial(train_in_shards, folder, teacher, steps, sharded, **settings)
    started = together(
        processes,
        lambda rank, environment: FreshProcess(work, place / f"{folder.name}-{rank}.txt", environment=environment),
    )
    for process in started:
        assert process.wait() == 0, process.text


@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP"])
def test_all_processes_hold_the_same_average_and_one_can_go_on(place, tiny_folder, tmp_path, sharded):
    settings = {"matching": int(sharded), "adversary": False}  # two trained networks in shards
    run_in_shards(place, tmp_path / "two", tiny_folder, 2, 2, sharded, **settings)
    averages = [load_file(tmp_path / "two" / f"average-{rank}.safetensors") for rank in (0, 1)]
    for name, tensor in averages[0].items():
        assert tensor.equal(averages[1][name]), name
    run_in_shards(place, tmp_path / "two", tiny_folder, 4, 2, sharded, **settings)  # resumed
    run_in_shards(place, tmp_path / "one", tiny_folder, 4, 1, False, **settings)
    assert_same_curve(tmp_path / "two", tmp_path / "one", steps=4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP"])
def test_two_processes_train_a_split_batch_in_half_precision(place, tiny_folder, tmp_path, sharded, precision):
    settings = {"mixed_precision": precision, "gradient_accumulation_steps": 2}
    run_in_shards(place, tmp_path / "two", tiny_folder, 4, 2, sharded, **settings)
    run_in_shards(place, tmp_path / "one", tiny_folder, 4, 1, False, **settings)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0.05)
    averages = [load_file(tmp_path / "two" / f"average-{rank}.safetensors") for rank in (0, 1)]
    assert all(tensor.equal(averages[1][name]) for name, tensor in averages[0].items())


@pytest.mark.slow
def test_accelerate_launch_starts_two(place, alone):
    command = [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={CPU}", "--num_processes=2"]
    command += ["-m", "gendistill.cli", *map(str, arguments("launched", {}))]
    ran = subprocess.run(command, cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert_same_curve(place / "launched", alone)
    assert [path.name for path in (place / "launched" / "student").glob("README.md")]
