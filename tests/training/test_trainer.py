import json
import math

import pytest
import torch

from gendistill.settings.schedule import weight_at
from gendistill.training.state import TrainState, Validation


class Stopped(Exception):
    """What ends a run in these tests, as a killed process would."""


def weights(trainer):
    networks = trainer.method.networks
    groups = {"student": networks.trained, "average": networks.averaged}
    return {f"{group}.{name}": p.detach().clone() for group, of in groups.items() for name, p in of.items()}


def assert_bitwise_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("settings", [{}, {"lr_schedule": "cosine"}, {"lora": True}, {"gradient_accumulation_steps": 2}])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights_bit_by_bit(trainer, tmp_path, settings):
    def stop_at_5(step):
        if step == 5:
            raise Stopped
        return Validation(float(10 - step), {})

    settings = {"max_steps": 7, **settings}
    uninterrupted = trainer(tmp_path / "whole", validate=lambda step: Validation(float(10 - step), {}), **settings)
    at_once = uninterrupted.train()
    first = trainer(tmp_path / "stopped", validate=stop_at_5, **settings)
    with pytest.raises(Stopped):
        first.train()
    assert first.checkpoints.steps()[-1] == "step-00000004"
    second = trainer(tmp_path / "stopped", validate=lambda step: Validation(float(10 - step), {}), **settings)
    resumed = second.train(resume=True)
    assert_bitwise_equal(weights(second), weights(uninterrupted))
    assert (
        (resumed.steps, resumed.best_step, resumed.best)
        == (at_once.steps, at_once.best_step, at_once.best)
        == (
            *(7, 7),
            Validation(3.0, {}),
        )
    )


def test_resuming_a_finished_run_changes_nothing(trainer, tmp_path):
    first = trainer(tmp_path, max_steps=3)
    first.train()
    second = trainer(tmp_path, max_steps=3)
    assert second.train(resume=True).steps == 3
    assert_bitwise_equal(weights(second), weights(first))


def test_resume_starts_from_the_beginning_where_there_is_no_checkpoint(trainer, tmp_path):
    one, other = trainer(tmp_path / "one", max_steps=2), trainer(tmp_path / "other", max_steps=2)
    one.train(resume=True)
    other.train()
    assert_bitwise_equal(weights(one), weights(other))


def test_a_run_is_not_overwritten_without_being_asked_to_resume(trainer, tmp_path):
    trainer(tmp_path, max_steps=2).train()
    with pytest.raises(ValueError, match=r"holds a run already; expects --resume, or another folder$"):
        trainer(tmp_path, max_steps=2).train()


def test_gradient_accumulation_makes_the_same_gradient(trainer, tmp_path):
    runs = [trainer(tmp_path / str(n), max_steps=2, gradient_accumulation_steps=n, learning_rate=1e-6) for n in (1, 2)]
    moments = []
    for run in runs:
        run.train()
        states = run.checkpoints.load_last().optimizers
        moments.append(torch.cat([state.flatten() for name, state in states.items() if name.endswith(".exp_avg")]))
    assert (moments[0] - moments[1]).norm() < 1e-4 * moments[0].norm()  # the sums differ in their order
    for name, tensor in weights(runs[0]).items():
        torch.testing.assert_close(weights(runs[1])[name], tensor, atol=1e-5, rtol=0)


def test_the_best_and_not_the_last_average_is_left_in_the_method(trainer, tmp_path):
    scores, seen = [5.0, 4.0, 1.0, 3.0, 2.0], {}

    def validate(step):
        seen[step] = {name: p.detach().clone() for name, p in run.method.networks.averaged.items()}
        return Validation(scores[step], {"step": step})

    run = trainer(tmp_path, validate=validate, max_steps=4)
    result = run.train()
    assert (result.steps, result.best_step, result.best) == (4, 2, Validation(1.0, {"step": 2}))
    assert_bitwise_equal(dict(run.method.networks.averaged), seen[2])
    assert any(not torch.equal(seen[4][name], tensor) for name, tensor in seen[2].items())


def test_without_a_validation_the_last_average_is_left_in_the_method(trainer, tmp_path):
    run = trainer(tmp_path, max_steps=3)
    assert run.train().best is None
    saved = run.checkpoints.load_last().weights
    assert_bitwise_equal(
        {f"average.{name}": p for name, p in run.method.networks.averaged.items()},
        {name: tensor for name, tensor in saved.items() if name.startswith("average.")},
    )


def test_training_stops_when_patience_runs_out(trainer, tmp_path):
    scores = [5.0, 4.0, 3.0, 3.0, 3.5, 1.0]
    run = trainer(tmp_path, validate=lambda step: Validation(scores[step], {}), max_steps=5, patience=2)
    result = run.train()
    assert (result.steps, result.best_step) == (4, 2)
    assert run.checkpoints.steps()[-1] == "step-00000004"


def test_what_training_starts_from_is_evaluated_but_does_not_become_the_student(trainer, tmp_path):
    scores = {0: 1.0, 2: 3.0, 4: 2.0}
    run = trainer(tmp_path, validate=lambda step: Validation(scores[step], {}), max_steps=4, validate_every=2)
    result = run.train()
    assert (result.best_step, result.best) == (4, Validation(2.0, {}))


def test_training_stops_when_time_runs_out(trainer, tmp_path):
    assert trainer(tmp_path, max_steps=1000, max_minutes=1e-6).train().steps == 1


def test_a_loss_that_is_not_finite_stops_the_run_with_a_sentence(trainer, tmp_path):
    run = trainer(tmp_path, max_steps=1)
    with torch.no_grad():
        next(iter(run.method.networks.trained.values())).fill_(torch.nan)
    with pytest.raises(ValueError, match=r"stopped at step 1: the loss of the student is not finite; .*Lower trainer\."):
        run.train()
    assert run.checkpoints.steps() == []


@pytest.mark.parametrize("validated", [True, False])
def test_weights_that_are_not_finite_are_never_written(trainer, tmp_path, validated):
    run = trainer(tmp_path, max_steps=9, validate=(lambda step: Validation(-float(step), {})) if validated else None)
    after_step = run.method.after_step

    def spoil(step, skipped):
        if step == 4:
            with torch.no_grad():
                run.method.networks.trained["conv_in.weight"][0, 0, 0, 0] = torch.nan
        after_step(step, skipped)

    run.method.after_step = spoil
    with pytest.raises(ValueError, match=r"training stopped at step 4: the weight average\.conv_in\.weight is not finite"):
        run.train()
    assert run.checkpoints.steps() == ["step-00000002"]
    assert run.checkpoints.load_last().name == "step-00000002"


def test_a_resumed_run_has_no_line_of_the_log_twice(trainer, tmp_path):
    def stop_at_5(step):
        if step == 5:
            raise Stopped
        return Validation(1.0, {})

    with pytest.raises(Stopped):
        trainer(tmp_path, validate=stop_at_5, max_steps=7, log_every=1).train()
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "sec')  # killed within a line
    trainer(tmp_path, validate=lambda step: Validation(1.0, {}), max_steps=7, log_every=1).train(resume=True)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["step"] for line in lines if "validation" in line] == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_checkpoint_is_also_written_when_the_last_one_is_old(trainer, tmp_path):
    run = trainer(tmp_path, max_steps=3, checkpoint_every=100, checkpoint_minutes=1e-9)
    run.train()
    assert run.checkpoints.steps() == ["step-00000002", "step-00000003"]


def test_the_log_holds_losses_and_validations(trainer, tmp_path):
    trainer(tmp_path, validate=lambda step: Validation(1.0, {"fid": 2.0}), max_steps=10, validate_every=5).train()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation" in line] == [0, 5, 10]
    (losses,) = [line for line in lines if "loss" in line]
    assert losses["step"] == 10
    assert losses["student_gradient_norm"] > 0


def test_warm_up_and_cosine_scale_the_learning_rate(trainer, tmp_path):
    run = trainer(tmp_path, max_steps=100, warmup_steps=4, lr_schedule="cosine")
    scales = []
    for step in (0, 1, 50, 100):
        state = TrainState(step)
        state.fraction = run.limits.fraction(state)
        scales.append(run.limits.learning_rate(state) / run.config.learning_rate)
    assert scales == pytest.approx([0.2, 0.4, 0.5, 0.0], abs=1e-3)


def test_minutes_move_the_learning_rate_and_the_schedules_of_losses_alike(trainer, tmp_path):
    run = trainer(tmp_path, max_steps=5000, max_minutes=0.02, lr_schedule="cosine", warmup_steps=0)
    seen, updates = [], run.method.updates

    def recorded(batch, step, random):
        seen.append((step, step.fraction, weight_at({0.0: 0.0, 1.0: 1.0}, step), run.limits.learning_rate(run.state)))
        return updates(batch, step, random)

    run.method.updates = recorded
    assert run.train().steps == len(seen) < 5000
    number, fraction, weight, rate = seen[-1]
    assert number == len(seen) - 1
    assert 0.3 < fraction <= 1
    assert weight == pytest.approx(fraction)
    assert rate == pytest.approx(run.config.learning_rate * (1 + math.cos(math.pi * fraction)) / 2)
