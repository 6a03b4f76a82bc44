import pytest
import torch

from gendistill.training.checkpoint import Checkpoints


def save(checkpoints, step):
    parameter = torch.nn.Parameter(torch.full((3,), float(step)))
    optimizer = torch.optim.AdamW([parameter], lr=0.0)
    parameter.grad = torch.ones(3)
    optimizer.step()
    checkpoints.save(step, {"student.weight": parameter}, {"student": optimizer.state_dict()}, {"best": None, "seconds": 1.5})


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.load_last() is None
    save(checkpoints, 3)
    weights, optimizers, state = Checkpoints(tmp_path / "checkpoints").load_last()
    assert torch.equal(weights["student.weight"], torch.full((3,), 3.0))
    torch.testing.assert_close(optimizers["student"]["state"][0]["exp_avg"], torch.full((3,), 0.1))
    assert state == {"best": None, "seconds": 1.5, "step": 3}


def test_the_last_two_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best({"weight": torch.zeros(2)}, {"step": 1})
    for step in (1, 2, 3, 20):
        save(checkpoints, step)
    assert checkpoints.steps() == ["step-00000003", "step-00000020"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step-00000003", "step-00000020"]


def test_the_best_is_replaced_by_a_better_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load_best() is None
    for step in (1, 2):
        checkpoints.save_best({"weight": torch.full((2,), float(step))}, {"step": step})
    weights, state = checkpoints.load_best()
    assert torch.equal(weights["weight"], torch.full((2,), 2.0))
    assert state == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_checkpoint_saved_again_replaces_the_first(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("broken_at", ["weights", "optimizers", "state"])
def test_what_a_killed_process_left_half_written_is_ignored_and_written_over(tmp_path, monkeypatch, broken_at):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)

    class Killed(BaseException):
        pass

    with monkeypatch.context() as killing:  # the process ends within the n-th flush, when not all files are on the disk
        flushes = iter({"weights": [], "optimizers": [None], "state": [None, None]}[broken_at])

        def flush(descriptor):
            for _ in flushes:
                return
            raise Killed

        killing.setattr("os.fsync", flush)
        with pytest.raises(Killed):
            save(checkpoints, 2)

    after = Checkpoints(tmp_path)
    assert after.steps() == ["step-00000001"]
    assert after.load_last()[2]["step"] == 1
    save(after, 2)
    assert after.load_last()[2]["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
