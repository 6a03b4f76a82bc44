"""A run of two networks is killed, spoiled or collapses."""

import copy
import json
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from fresh_process import count_writes, die_at_write, gendistill
from safetensors.torch import load_file
from tiny_gans import tiny_gan, tiny_gan_trainer, tiny_method, tiny_pictures, tiny_student, without_onnx

from gendistill.gan.architectures.resnet import ResNetGenerator
from gendistill.gan.gan_folder import open_gan, save_gan
from gendistill.metrics.features.feature_extractor import load_extractor
from gendistill.run.gan_validation import GeneratorValidator
from gendistill.training.state import Validation

STUDENT = f"{ResNetGenerator.__module__}:ResNetGenerator"  # which takes no seconds of pruning
ROOT = Path(__file__).parents[2]
SETTINGS = {"discriminator": {"match": 0.1, "r1": 0.1, "penalty_every": 3}, "ema_decay": 0.9, "adversarial": {0: 0.1, 5: 1}}


class Killed(Exception):
    """What ends a run in these tests, as a killed process would."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_pictures(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def fresh(data):
    """fresh(folder, kill_at=step, gan=settings, **settings of TrainerConfig): a run as a fresh process makes it."""

    def make(folder, kill_at=None, gan=None, **settings):
        method = tiny_method(data=data, **{**SETTINGS, **(gan or {})})

        def validate(step):
            if step == kill_at:
                raise Killed
            method.report_diversity(0.75)
            return Validation(float(10 - step), {})

        given = {"max_steps": 7, "validate_every": 1, "lr_schedule": "cosine", **settings}
        return tiny_gan_trainer(method, data, folder, validate=validate, **given)

    return make


def left_by(run):
    """All that a run is for, to the bit; its log but for the seconds."""
    last = run.checkpoints.load_last()
    lines = [json.loads(line) for line in (run.run_folder / "log.jsonl").read_text().splitlines()]
    state = {name: value for name, value in last.state.items() if name not in ("seconds", "log_size")}
    return last.weights, last.optimizers, state, [{**line, "seconds": 0} for line in lines]


def assert_the_same(one, other):
    for of_one, of_other in zip(one[:2], other[:2], strict=True):
        assert of_one.keys() == of_other.keys()
        for name, tensor in of_one.items():
            assert torch.equal(tensor, of_other[name]), name
    assert one[2:] == other[2:]


@pytest.mark.parametrize(
    ("gan", "trainer"),
    [
        ({}, {}),
        ({"peer": "teacher"}, {}),
        ({"discriminator.steps": 2}, {"gradient_accumulation_steps": 2}),
        ({"discriminator.real": "both"}, {"lr_schedule": "constant"}),
    ],
)
def test_a_run_that_was_killed_goes_on_to_the_same_bits_of_all_networks(fresh, tmp_path, gan, trainer):
    whole = fresh(tmp_path / "whole", gan=gan, **trainer)
    whole.train()
    killed = fresh(tmp_path / "killed", kill_at=5, gan=gan, **trainer)
    with pytest.raises(Killed):
        killed.train()
    assert killed.checkpoints.steps()[-1] == "step-00000004"
    resumed = fresh(tmp_path / "killed", gan=gan, **trainer)
    resumed.train(resume=True)
    expected, found = left_by(whole), left_by(resumed)
    assert_the_same(expected, found)
    method = found[2]["method"]
    assert len(method["discriminator_accuracy"]) == 7
    assert method["diversity"] == method["max_diversity"] == 0.75


def test_a_checkpoint_holds_weights_statistics_spectral_norms_and_both_optimizers(fresh, tmp_path):
    run = fresh(tmp_path, max_steps=2)
    run.train()
    weights, optimizers, _, _ = left_by(run)
    found = set(weights)
    assert {"average.out.weight", "student.network.out.weight", "discriminator.logit.bias"} <= found
    assert {"average.norm.running_mean", "buffer.student.network.norm.running_mean"} <= found
    assert "buffer.discriminator.logit.parametrizations.weight.0._u" in found
    assert any(name.startswith("student.regressors.") for name in found)
    assert {name.partition(".")[0] for name in optimizers} == {"student", "discriminator"}
    for name, buffer in run.method.buffers().items():
        assert torch.equal(weights[f"buffer.{name}"], buffer)


# ---- from the command line


def settings_of(place, **changes):
    given = {
        **{"data.cache": place / "cache", "gan.discriminator.match": 0.1, "gan.discriminator.r1": 0.1},
        **{"gan.output.perceptual": 0, "gan.ema_decay": 0.9, "trainer.lr_schedule": "cosine"},
        **{"trainer.max_steps": 7, "trainer.batch_size": 4, "trainer.log_every": 1, "trainer.checkpoint_every": 2},
        **{"trainer.validate_every": 3, "trainer.num_validation": 8, "trainer.trackers": "[]", **changes},
    }
    return [f"--set={name}={value}" for name, value in given.items()]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    place = tmp_path_factory.mktemp("teacher")
    save_gan(place / "teacher", tiny_gan())
    (place / "student.json").write_text(json.dumps(tiny_student(tiny_gan()).source.arguments))
    return place / "teacher"


def distill(teacher, run, *more, before=None, **changes):
    arguments = ["distill", teacher, "--method", "gan", "--student", STUDENT, "--out", run, "--device", "cpu", *more]
    changes = {"compress.student_config": teacher.parent / "student.json", **changes}
    trap = partial(without_onnx, before)
    return gendistill([*arguments, *settings_of(run.parent, **changes)], run.with_suffix(".txt"), folder=ROOT, before=trap)


def written(run):
    files = [*(run / "checkpoints").rglob("*.safetensors"), *(run / "student").rglob("*.safetensors")]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}, [{**line, "seconds": 0} for line in lines]


def test_a_process_that_is_killed_and_begun_again_ends_with_the_same_files(teacher, tmp_path):
    counted = tmp_path / "writes"
    whole = distill(teacher, tmp_path / "whole", before=partial(count_writes, tmp_path / "whole", counted))
    assert whole.wait() == 0, whole.text
    writes = counted.stat().st_size
    killed = distill(teacher, tmp_path / "killed", before=partial(die_at_write, tmp_path / "killed", 3 * writes // 5))
    assert killed.wait() == -signal.SIGKILL, killed.text
    assert (tmp_path / "killed" / "checkpoints").exists()
    assert not (tmp_path / "killed" / "student").exists()
    again = distill(teacher, tmp_path / "killed", "--resume")
    assert again.wait() == 0, again.text
    files, lines = written(tmp_path / "whole")
    assert "student/generator/diffusion_pytorch_model.safetensors" in files
    assert written(tmp_path / "killed") == (files, lines)


def test_a_run_that_the_method_ends_leaves_its_best_with_a_sentence_and_exit_code_0(teacher, tmp_path):
    run = tmp_path / "run"
    saturated = {"gan.adversarial": 1, "gan.collapse_saturation": 0.001, "trainer.max_steps": 200, "trainer.validate_every": 20}
    process = distill(teacher, run, **saturated)
    assert process.wait() == 0, process.text
    assert "training ended at step 30: the discriminator is saturated, its accuracy" in process.text
    assert "the best so far is that of step" in process.text
    assert "Traceback" not in process.text
    best = json.loads((run / "checkpoints" / "step-00000030" / "state.json").read_text())["best_step"]
    kept = load_file(run / "checkpoints" / f"best-{best:08d}" / "weights.safetensors")
    student = open_gan(run / "student").generator.network.state_dict()
    assert student.keys() == kept.keys()
    for name, tensor in student.items():
        torch.testing.assert_close(tensor, kept[name], atol=2e-3, rtol=2e-3)
    assert "the discriminator is saturated" in (run / "student" / "README.md").read_text()


# ---- spoiled


@pytest.mark.parametrize("log_every", [1, 100])
@pytest.mark.parametrize("name", ["student", "discriminator"])
def test_a_network_that_is_not_finite_is_named_and_the_last_checkpoint_stays(fresh, tmp_path, name, log_every):
    run = fresh(tmp_path, log_every=log_every, max_steps=9, validate_every=100)
    after_step = run.method.after_step

    def spoil(step, skipped):
        after_step(step, skipped)
        if step == 3:
            with torch.no_grad():
                next(iter(run.method.trained_parameters()[name].values())).flatten()[0] = torch.nan

    run.method.after_step = spoil
    with pytest.raises(ValueError, match=f"training stopped at step 4: the loss of the {name} is not finite; the learning"):
        run.train()
    assert run.checkpoints.steps() == ["step-00000002"]
    assert run.checkpoints.load_last().name == "step-00000002"


@pytest.mark.parametrize("name", ["student", "discriminator"])
def test_weights_that_are_spoiled_just_before_a_checkpoint_are_not_written(fresh, tmp_path, name):
    run = fresh(tmp_path, max_steps=9, validate_every=100)
    after_step = run.method.after_step

    def spoil(step, skipped):
        after_step(step, skipped)
        if step == 4:
            with torch.no_grad():
                next(iter(run.method.trained_parameters()[name].values())).flatten()[0] = torch.nan

    run.method.after_step = spoil
    with pytest.raises(ValueError, match=rf"training stopped at step 4: the weight {name}\.\S+ is not finite"):
        run.train()
    assert run.checkpoints.steps() == ["step-00000002"]


# ---- collapsed


def test_a_student_that_collapses_ends_with_its_best(data, tmp_path):
    gan = tiny_gan()
    start = tiny_student(gan)
    start = type(start)(**{**vars(start), "network": copy.deepcopy(gan.generator.network)})
    method = tiny_method(gan, data, start, ema_decay=0)
    validator = GeneratorValidator(method, data, load_extractor("emoji"), tmp_path / "samples", num=16, seed=0, device="cpu")
    run = tiny_gan_trainer(method, data, tmp_path / "run", validate=validator, max_steps=20, learning_rate=1e-9)
    seen, after_step = {}, method.after_step

    def collapse(step, skipped):
        if step == 3:
            with torch.no_grad():
                method.networks.trained["out.weight"].zero_()
        after_step(step, skipped)
        seen[step] = {name: tensor.clone() for name, tensor in method.networks.average_state().items()}

    method.after_step = collapse
    result = run.train()
    assert (result.steps, result.best_step) == (4, 2)
    assert result.ended.startswith("training ended at step 4: the student collapses, its images are 0.")
    assert result.ended.endswith("; the best so far is that of step 2")
    for name, tensor in method.networks.average_state().items():
        assert torch.equal(tensor, seen[2][name]), name
    again = tiny_gan_trainer(
        tiny_method(tiny_gan(), data, start, ema_decay=0), data, tmp_path / "run", validate=validator, max_steps=20
    )
    assert again.train(resume=True).ended == result.ended
