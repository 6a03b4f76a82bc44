"""Mixed precision in a training step: what is computed under autocast, and how losses are scaled for several optimizers."""

import copy
import json
from typing import ClassVar

import pytest
import torch
from tiny_gans import PICTURE, tiny_gan_trainer, tiny_method, tiny_pictures, tiny_translator
from torch import nn
from torch.amp import GradScaler

from gendistill.training.ema import MovingAverage
from gendistill.training.method import Method, Update
from gendistill.training.mixed_precision import loss_scaler
from gendistill.training.trainer import Trainer
from gendistill.training.trainer_config import TrainerConfig

SCALE = 2.0**16
OVERFLOWS = 1e35  # a gradient that float32 holds, but not times the scale


class Average(MovingAverage):
    shards = False

    def __init__(self, network):
        self.network, self.copy = network, copy.deepcopy(network).requires_grad_(False)
        self.trained, self.averaged = dict(network.named_parameters()), dict(self.copy.named_parameters())


class Recorded(torch.autograd.Function):
    """The identity, which notes whether autocast is on in its forward and in its backward pass, and whether it caches casts."""

    seen: ClassVar = []

    @staticmethod
    def forward(context, x):
        Recorded.seen.append(("forward", torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        Recorded.seen.append(("backward", torch.is_autocast_enabled("cpu")))
        return gradient


class CriticAndStudents(Method):
    """A critic that steps several times in a step, a student with a head that learns with it, and a peer.

    `gradients` are those of the weights: by optimizer, a number for each step of the training; None where it has no loss.
    """

    name = "critic and students"

    def __init__(self, gradients, critic_steps=1):
        torch.manual_seed(0)
        self.modules = {name: nn.Linear(2, 1, bias=False) for name in ("critic", "student", "head", "peer")}
        self.gradients, self.critic_steps = gradients, critic_steps
        self.students = {name: Average(self.modules[name]) for name in ("student", "peer")}
        self.networks = self.students["student"]
        self.parameters = {name: dict(module.named_parameters()) for name, module in self.modules.items()}

    @property
    def averages(self):
        return self.students

    def trained_modules(self):
        return self.modules

    def replace_modules(self, wrapped):
        self.modules = wrapped

    def trained_parameters(self):
        return self.parameters

    def updates(self, batch, step, random):
        def loss(name):
            factor = self.gradients.get(name, [1.0] * 99)[step]
            return 0.0 if factor is None else factor * Recorded.apply(self.modules[name](batch)).mean()

        for _ in range(self.critic_steps):
            yield Update(loss("critic"), ("critic",))
        yield Update(loss("student") + loss("head"), ("student", "head"), {"loss": torch.zeros(())})
        yield Update(loss("peer"), ("peer",))


class Ones:
    """Rows of ones, so that a gradient is the method's own number."""

    def __len__(self):
        return 4

    def rows_of_step(self, seed, step, batch_size):
        return torch.arange(batch_size)

    def batch(self, rows, random, device):
        return torch.ones(len(rows), 2, device=device)

    def summary(self):
        return {"rows": 4}


def trained(folder, gradients=None, scaled=True, steps=1, critic_steps=1, spoil=lambda method: None, **settings):
    """A method after some steps, its trainer, and the gradients that its optimizers stepped on, in order."""
    method = CriticAndStudents(gradients or {}, critic_steps)
    spoil(method)
    given = {"batch_size": 4, "max_steps": steps, "warmup_steps": 3, "max_grad_norm": 1e9, "log_every": 1, "trackers": []}
    trainer = Trainer(method, Ones(), TrainerConfig(**given | settings), folder, seed=0, cpu=True)
    trainer.accelerator.scaler = GradScaler("cpu", init_scale=SCALE) if scaled else None
    clip, seen = trainer.accelerator.clip_grad_norm_, []

    def recorded(parameters, norm):
        parameters = list(parameters)
        seen.extend(parameter.grad.flatten().clone() for parameter in parameters if parameter.grad is not None)
        return clip(parameters, norm)

    trainer.accelerator.clip_grad_norm_ = recorded
    trainer.train()
    return method, trainer, seen


def weights(method):
    return {name: module.weight.detach().clone() for name, module in method.modules.items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("critic_steps", [1, 3])
def test_each_optimizer_unscales_its_own_gradients_once_in_each_of_its_steps(tmp_path, parts, critic_steps):
    runs = {
        scaled: trained(
            tmp_path / str(scaled), scaled=scaled, steps=2, critic_steps=critic_steps, gradient_accumulation_steps=parts
        )
        for scaled in (False, True)
    }
    (plain, _, expected), (method, trainer, seen) = runs[False], runs[True]
    assert len(seen) == 2 * (critic_steps + 3)
    assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))
    assert same(weights(method), weights(plain))
    if critic_steps == 1:  # the scale grows after as many steps without overflow as GradScaler says, so steps are counted once
        assert trainer.accelerator.scaler.state_dict()["_growth_tracker"] == 2


def test_a_skipped_step_of_the_critic_leaves_the_students_as_they_would_be(tmp_path):
    plain, *_ = trained(tmp_path / "plain")
    method, trainer, _ = trained(tmp_path / "overflow", {"critic": [OVERFLOWS]})
    before, after, expected = weights(CriticAndStudents({})), weights(method), weights(plain)
    assert torch.equal(after.pop("critic"), before["critic"])
    expected.pop("critic")
    assert same(after, expected)
    for name, average in method.averages.items():
        assert torch.equal(average.copy.weight, plain.averages[name].copy.weight)
    assert trainer.accelerator.scaler.get_scale() == SCALE / 2


def test_a_skipped_step_of_a_student_moves_neither_its_average_nor_the_warm_up(tmp_path):
    overflow, steps = {"student": [1.0, OVERFLOWS, 1.0]}, 3
    method, trainer, seen = trained(tmp_path / "overflow", overflow, steps=steps)
    two, *_ = trained(tmp_path / "two", steps=2)
    assert torch.equal(method.modules["student"].weight, two.modules["student"].weight)  # steps 1 and 3, as 1 and 2
    average, peer = (method.averages[name] for name in ("student", "peer"))
    assert not torch.equal(average.copy.weight, average.network.weight)
    assert not torch.equal(peer.network.weight, two.modules["peer"].weight)  # the peer has stepped three times
    assert not torch.equal(peer.copy.weight, two.averages["peer"].copy.weight)
    assert all(gradient.isfinite().all() for gradient in seen[4:5] + seen[8:])  # no gradient is left over from the skipped step
    assert trainer.state.skipped == 1
    lines = [json.loads(line) for line in (tmp_path / "overflow" / "log.jsonl").read_text().splitlines()]
    assert [line["skipped_steps"] for line in lines if "skipped_steps" in line] == [0, 1, 1]


def test_an_optimizer_without_a_loss_in_a_step_rests(tmp_path):
    scaled, plain = (
        trained(tmp_path / str(scaled), {"head": [1.0, None, 1.0]}, scaled=scaled, steps=3)[0] for scaled in (True, False)
    )
    assert same(weights(scaled), weights(plain))


def test_gradients_that_overflow_at_every_scale_stop_the_training_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="gradients overflow float16 in every step"):
        trained(
            tmp_path,
            steps=40,
            spoil=lambda method: method.modules["student"].weight.register_hook(lambda gradient: gradient * torch.inf),
        )


def test_autocast_is_on_in_forward_passes_alone_and_casts_weights_in_each_anew(tmp_path):
    Recorded.seen.clear()
    method, *_ = trained(tmp_path, scaled=False, mixed_precision="bf16", critic_steps=2)
    assert {entry for entry in Recorded.seen if entry[0] == "forward"} == {("forward", True, False)}
    assert {entry for entry in Recorded.seen if entry[0] == "backward"} == {("backward", False)}
    assert all(parameter.dtype == torch.float32 for module in method.modules.values() for parameter in module.parameters())


def test_average_and_optimizer_state_are_float32(tmp_path):
    method, trainer, _ = trained(tmp_path, mixed_precision="fp16", steps=4)  # at the first scale gradients of 1 overflow
    assert 0 < trainer.state.skipped < 4
    assert method.networks.copy.weight.dtype == torch.float32
    states = trainer.checkpoints.load_last().optimizers
    assert {name.rpartition(".")[2] for name in states} == {"exp_avg", "exp_avg_sq", "step"}
    assert all(tensor.dtype == torch.float32 for tensor in states.values())


def test_losses_are_scaled_wherever_float16_is_computed():
    half, full = nn.Linear(1, 1).half(), nn.Linear(1, 1)
    cpu = torch.device("cpu")
    for mixed_precision, networks in (("fp16", [full]), ("no", [full, half]), ("bf16", [half])):
        assert isinstance(loss_scaler(mixed_precision, networks, cpu), GradScaler)
    for mixed_precision, networks in (("no", [full]), ("bf16", [full]), ("no", [full, nn.Linear(1, 1).bfloat16()])):
        assert loss_scaler(mixed_precision, networks, cpu) is None


def test_a_second_step_of_the_discriminator_computes_with_the_weights_of_the_first(tmp_path):
    data, bare = tiny_pictures(tmp_path / "cache", PICTURE), {"output__perceptual": 0.0, "features__hints": 0.0}
    critic = {"discriminator__steps": 2, "discriminator__augment": [], "discriminator__match": 0.0}
    method = tiny_method(gan=tiny_translator(), data=data, **critic, **bare)
    settings = {"mixed_precision": "bf16", "learning_rate": 1e-2, "warmup_steps": 0, "max_steps": 1}
    trainer = tiny_gan_trainer(method, data, tmp_path / "run", **settings)
    discriminator = method.pairs[0].discriminator.network
    calls = []  # images, logits, weights at the time
    hook = discriminator.register_forward_hook(
        lambda network, inputs, logits: calls.append((inputs[0].detach(), logits.detach(), copy.deepcopy(network.state_dict())))
    )
    trainer.train()
    hook.remove()
    assert len(calls) == 5  # real and generated images in each of two steps, and the student's
    for images, logits, state in calls:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            expected = torch.func.functional_call(discriminator, state, (images,))
        torch.testing.assert_close(logits, expected)
    first, second = calls[0][2], calls[2][2]
    assert any(not torch.equal(first[name], second[name]) for name in first)
