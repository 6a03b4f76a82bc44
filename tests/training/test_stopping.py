"""Signals, sent by the process to itself at chosen moments; tests/run/test_crash.py sends them from outside."""

import signal
import threading

import pytest
import torch

from gendistill.training import stopping
from gendistill.training.state import Validation
from gendistill.training.stopping import Stopped, StopSignals


def test_a_signal_is_only_noted():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        assert stop.number is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_one_stops_at_once_but_not_the_launchers_echo_of_the_first(monkeypatch):
    monkeypatch.setattr(stopping, "PATIENCE", 60)  # a busy machine may take a second between the two
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(stopping, "PATIENCE", 0)
        with pytest.raises(Stopped, match="without a checkpoint") as stopped:
            signal.raise_signal(signal.SIGINT)
    assert (stop.number, stopped.value.exit_code) == (signal.SIGINT, 130)


def test_work_that_can_be_done_again_is_cut_short():
    with StopSignals() as stop:
        with pytest.raises(Stopped), stop.at_once():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped), stop.at_once():
            pytest.fail("it has been asked to stop already")


def test_in_another_thread_nothing_is_changed():
    before, inside = signal.getsignal(signal.SIGINT), []

    def work():
        with StopSignals():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


@pytest.mark.parametrize("moment", ["within a step", "within a validation"])
def test_a_run_that_a_signal_stops_goes_on_to_the_same_bits(trainer, tmp_path, moment):
    def evaluate(step):
        if step == 4 and moment == "within a validation" and not (tmp_path / "asked").exists():
            (tmp_path / "asked").touch()
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("a validation is cut short")
        return Validation(float(10 - step), {"step": step})

    settings = {"max_steps": 7, "validate_every": 2, "checkpoint_every": 100}
    straight = trainer(tmp_path / "straight", validate=evaluate if moment == "within a step" else None, **settings)
    if moment == "within a validation":
        straight.validate = lambda step: Validation(float(10 - step), {"step": step})
    expected = straight.train()
    stopped = trainer(tmp_path / "stopped", validate=evaluate, **settings)
    if moment == "within a step":
        after_step = stopped.method.after_step

        def signalled(step, skipped):
            if step == 4:
                signal.raise_signal(signal.SIGTERM)
            after_step(step, skipped)

        stopped.method.after_step = signalled
    with pytest.raises(Stopped, match="stopped after step 4; its checkpoint is saved") as error:
        stopped.train()
    assert error.value.exit_code == 143
    assert stopped.checkpoints.steps() == ["step-00000004"]
    again = trainer(tmp_path / "stopped", validate=evaluate, **settings)
    assert (again.train(resume=True).best_step, again.state.best) == (expected.best_step, expected.best)
    for name, parameter in straight.method.networks.trained.items():
        assert torch.equal(parameter, again.method.networks.trained[name])
    logs = [[line.split('"seconds"')[0] for line in (tmp_path / run / "log.jsonl").open()] for run in ("straight", "stopped")]
    assert logs[0] == logs[1]
