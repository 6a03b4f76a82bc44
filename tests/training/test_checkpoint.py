import errno

import pytest
import torch

from gendistill.training.checkpoint import Checkpoints
from gendistill.training.method import OptimizerSettings
from gendistill.training.optimizers import build_optimizer, load_optimizer_tensors, optimizer_tensors
from gendistill.training.trainer_config import TrainerConfig


def save(checkpoints, step, best_step=None):
    weights = {"student.weight": torch.full((3,), float(step))}
    checkpoints.save(step, weights, {"student.weight.exp_avg": torch.full((3,), 0.1)}, {"seconds": 1.5}, best_step)


def save_best(checkpoints, step):
    checkpoints.save_best(step, {"weight": torch.full((2,), float(step))}, {"score": 0.5})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.load_last() is None
    save(checkpoints, 3)
    last = Checkpoints(tmp_path / "checkpoints").load_last()
    assert torch.equal(last.weights["student.weight"], torch.full((3,), 3.0))
    assert torch.equal(last.optimizers["student.weight.exp_avg"], torch.full((3,), 0.1))
    assert (last.name, last.state, last.skipped) == ("step-00000003", {"seconds": 1.5, "step": 3}, ())


def test_names_of_earlier_versions_are_read_by_the_names_of_today(tmp_path):
    current = {  # by the name of today
        "partner.conv_in.weight": "peer.conv_in.weight",
        "buffer.partner_average.conv_in.weight": "buffer.peer_average.conv_in.weight",
        "partner_discriminator.blocks.0.beside.bias": "peer_discriminator.blocks.0.shortcut.bias",
        "discriminator.of_condition.1.weight": "discriminator.condition_embedding.1.weight",
        "student.partner.weight": "student.partner.weight",
    }
    tensors = {name: torch.tensor([float(index)]) for index, name in enumerate(current)}
    state = {"losses": {"partner": [0.1], "partner_discriminator": []}, "method": {"told_apart": [1], "most_diverse": 0.5}}
    Checkpoints(tmp_path).save(1, tensors, {f"{name}.exp_avg": tensor for name, tensor in tensors.items()}, state)
    last = Checkpoints(tmp_path).load_last()
    assert last.weights == {current[name]: tensor for name, tensor in tensors.items()}
    assert last.optimizers.keys() == {f"{name}.exp_avg" for name in current.values()}
    assert last.state["losses"] == {"peer": [0.1], "peer_discriminator": []}
    assert last.state["method"] == {"discriminator_accuracy": [1], "max_diversity": 0.5}


def test_nothing_is_a_pickle(tmp_path):
    save(Checkpoints(tmp_path), 1)
    assert names(tmp_path / "step-00000001") == [
        *("manifest.json", "optimizers.safetensors", "state.json", "weights.safetensors"),
    ]


def test_the_last_two_and_the_best_that_they_refer_to_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        save_best(checkpoints, step)
        save(checkpoints, step, best_step=step)
    save(checkpoints, 20, best_step=3)
    assert checkpoints.steps() == ["step-00000003", "step-00000020"]
    assert names(tmp_path) == ["best-00000003", "step-00000003", "step-00000020"]
    assert torch.equal(checkpoints.load_best(3)["weight"], torch.full((2,), 3.0))


def test_what_the_user_put_beside_the_checkpoints_stays(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    save(Checkpoints(tmp_path), 1)
    assert names(tmp_path) == ["notes.txt", "step-00000001"]


def test_a_checkpoint_saved_again_replaces_the_first(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 1)
    assert names(tmp_path) == ["step-00000001"]


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizers.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [cut_short, flip_a_byte, lambda path: path.unlink()], ids=["cut", "flipped", "missing"])
def test_the_one_before_is_used_where_the_newest_is_damaged(tmp_path, file, damage):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    damage(tmp_path / "step-00000002" / file)
    last = checkpoints.load_last()
    assert last.name == "step-00000001"
    (reason,) = last.skipped
    assert reason.startswith("step-00000002/")
    save(checkpoints, 2)  # the run comes there again
    assert checkpoints.load_last().name == "step-00000002"


def test_a_checkpoint_is_damaged_without_the_best_that_it_refers_to(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    save_best(checkpoints, 2)
    save(checkpoints, 2, best_step=2)
    flip_a_byte(tmp_path / "best-00000002" / "weights.safetensors")
    last = checkpoints.load_last()
    assert (last.name, last.skipped) == (
        "step-00000001",
        ("best-00000002/weights.safetensors is corrupted",),
    )


def test_where_all_are_damaged_one_sentence_names_the_damage_of_each(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    cut_short(tmp_path / "step-00000001" / "state.json")
    (tmp_path / "step-00000002" / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match="no intact checkpoint") as error:
        checkpoints.load_last()
    assert "step-00000002/weights.safetensors cannot be read: no such file" in str(error.value)
    assert "step-00000001/state.json is corrupted" in str(error.value)


def test_checkpoints_of_a_life_that_was_given_up_are_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 4):
        save(checkpoints, step)
    save(checkpoints, 2)  # from 1, where 4 was damaged
    assert checkpoints.steps() == ["step-00000001", "step-00000002"]


class Killed(BaseException):
    pass


CALLS = ["os.fsync", "os.replace", "shutil.rmtree"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("number", range(6))
def test_a_save_that_ends_at_any_call_leaves_intact_checkpoints_and_can_be_repeated(tmp_path, monkeypatch, call, number):
    """What SIGKILL leaves is tested in tests/run/test_crash.py; here each place can be chosen."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        save_best(checkpoints, step)
        save(checkpoints, step, best_step=step)
    with monkeypatch.context() as killing:
        module, name = call.split(".")
        real, left = getattr(__import__(module), name), iter(range(number))

        def dying(*arguments, **options):
            if next(left, None) is None:
                raise Killed
            return real(*arguments, **options)

        killing.setattr(call, dying)
        try:
            save_best(checkpoints, 3)
            save(checkpoints, 3, best_step=3)
        except Killed:
            pass
    after = Checkpoints(tmp_path)
    for name in [*after.steps(), *(path.name for path in tmp_path.glob("best-*"))]:
        assert after.damage(name) is None
    assert after.load_last().name in ("step-00000002", "step-00000003")
    save_best(after, 3)
    save(after, 3, best_step=3)
    assert names(tmp_path) == ["best-00000002", "best-00000003", "step-00000002", "step-00000003"]


@pytest.mark.parametrize("full_at", ["weights", "state"])
def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_half_written(tmp_path, monkeypatch, full_at):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    with monkeypatch.context() as full:

        def no_room(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr("gendistill.training.checkpoint.save_file" if full_at == "weights" else "pathlib.Path.write_text", no_room)
        with pytest.raises(OSError, match="No space left"):
            save(checkpoints, 2)
    assert names(tmp_path) == ["step-00000001"]
    assert checkpoints.load_last().name == "step-00000001"


def test_an_optimizer_goes_on_as_if_it_had_never_been_stored():
    torch.manual_seed(0)
    parameters = [{name: torch.nn.Parameter(torch.ones(3, 2)) for name in ("a.weight", "b.weight")} for _ in range(2)]
    gradients = torch.randn(4, 3, 2)
    config = TrainerConfig(learning_rate=0.1, weight_decay=0.01)
    one, other = (build_optimizer(config, of, OptimizerSettings()) for of in parameters)

    def step(optimizer, of, number):
        for parameter in of.values():
            parameter.grad = gradients[number].clone()
        optimizer.step()

    for number in range(2):
        step(one, parameters[0], number)
    stored = {name: tensor.clone() for name, tensor in optimizer_tensors(one, parameters[0]).items()}
    assert set(stored) == {f"{name}.{key}" for name in ("a.weight", "b.weight") for key in ("step", "exp_avg", "exp_avg_sq")}
    with torch.no_grad():
        for name, parameter in parameters[1].items():
            parameter.copy_(parameters[0][name])
    load_optimizer_tensors(other, parameters[1], stored)
    for number in (2, 3):
        step(one, parameters[0], number)
        step(other, parameters[1], number)
    for name, parameter in parameters[0].items():
        assert torch.equal(parameter, parameters[1][name])
