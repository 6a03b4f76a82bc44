"""Networks that are one base under several adapters learn as networks of their own would, in any order of calls."""

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny_pipeline import tiny_unet

from gendistill.diffusion.trained_networks import AVERAGE, STUDENT, AdapterView, SharedBase, adapter_parameters, lora_config
from gendistill.samplers.families.stable_diffusion import StableDiffusion
from gendistill.training.method import Method
from gendistill.training.preparation import prepare, require_gradients, require_trainable
from gendistill.training.trainer_config import TrainerConfig

TEACHER, OTHER = None, "other student"
ORDERS = {
    "student, teacher": (STUDENT, TEACHER),
    "teacher, student": (TEACHER, STUDENT),
    "student, average, student": (STUDENT, AVERAGE, STUDENT),
    "two students, teacher": (STUDENT, OTHER, TEACHER),
    "two students by turns": (OTHER, STUDENT, AVERAGE, OTHER, TEACHER, STUDENT),
}


class Both(Method):
    """Two students on one base, each with an optimizer of its own."""

    name = "both"

    def __init__(self, shared):
        self.networks = type("Networks", (), {"lora": shared.lora, "shards": True})()
        self.modules = {"one": shared.adapter(STUDENT), "other": shared.adapter(OTHER)}
        self.parameters = {"one": shared.parameters(STUDENT), "other": shared.parameters(OTHER)}

    def trained_modules(self):
        return self.modules

    def replace_modules(self, wrapped):
        self.modules = wrapped

    def trained_parameters(self):
        return self.parameters

    def updates(self, batch, step, random):
        yield from ()

    def after_step(self, step):
        pass


@pytest.fixture
def shared():
    """A base under three adapters of random weights; both students learn."""
    shared = SharedBase(tiny_unet().train(), lora_config(StableDiffusion.lora_targets, 4))
    fill = torch.Generator().manual_seed(0)
    for name in (STUDENT, AVERAGE, OTHER):
        shared.adapter(name, trained=name != AVERAGE)
        with torch.no_grad():
            for parameter in shared.parameters(name).values():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=fill))
    return shared


def view(shared, name):
    return shared.without_adapter() if name is TEACHER else shared.adapter(name)


def alone(shared, name):
    """A network of its own, with the same adapter by PEFT alone, or without any."""
    network = tiny_unet().train().requires_grad_(False)
    if name is not TEACHER:
        network.add_adapter(copy.deepcopy(shared.lora), name)
        weights = shared.parameters(name)
        with torch.no_grad():
            for path, parameter in adapter_parameters(network, name):
                parameter.copy_(weights[path])
    return network


def loss_of(networks, order, seed=0):
    """Calls that feed one another, so that gradients pass all of them, and one backward pass at the end."""
    generator = torch.Generator().manual_seed(seed)
    x, prompts = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 32, generator=generator)
    total = 0.0
    for number, name in enumerate(order):
        x = networks[name](x, torch.tensor([999 - number, 19]), prompts).sample
        total = total + (number + 1) * x.square().mean()
    return total


def gradients(parameters):
    return {name: None if parameter.grad is None else parameter.grad.clone() for name, parameter in parameters.items()}


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("order", ORDERS)
def test_gradients_are_those_of_networks_of_their_own(shared, order, checkpointing, autocast):
    order = ORDERS[order]
    views, others = ({name: make(shared, name) for name in set(order)} for make in (view, alone))
    if checkpointing:
        views[order[0]].enable_gradient_checkpointing()
    for networks in (views, others):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(networks, order)
        loss.backward()
    for name in set(order) - {TEACHER, AVERAGE}:
        ours, theirs = gradients(shared.parameters(name)), gradients(dict(adapter_parameters(others[name], name)))
        assert ours.keys() == theirs.keys()
        for path, gradient in ours.items():
            torch.testing.assert_close(gradient, theirs[path], atol=1e-6, rtol=1e-6, msg=path)
    learning = {id(parameter) for name in (STUDENT, OTHER) for parameter in shared.parameters(name).values()}
    assert all(parameter.requires_grad == (id(parameter) in learning) for parameter in shared.network.parameters())
    assert all(parameter.grad is None for parameter in shared.network.parameters() if id(parameter) not in learning)


@torch.no_grad()
def test_no_adapter_is_on_between_the_calls_and_after_one_that_failed(shared):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([999, 19]), torch.randn(2, 5, 32, generator=generator)
    expected = tiny_unet()(*inputs).sample
    student = shared.adapter(STUDENT)
    assert not torch.equal(student(*inputs).sample, expected)
    assert torch.equal(shared.network(*inputs).sample, expected)
    with pytest.raises(RuntimeError):
        student(inputs[0], inputs[1], inputs[2][:, :, :3])
    assert torch.equal(shared.network(*inputs).sample, expected)
    with shared.using(AVERAGE):
        average = shared.network(*inputs).sample
        student(*inputs)
        assert torch.equal(shared.network(*inputs).sample, average)
    assert torch.equal(shared.adapter(AVERAGE)(*inputs).sample, average)


def test_an_adapter_that_is_there_is_given_again_as_it_is(shared):
    before = {name: parameter.clone() for name, parameter in shared.parameters(STUDENT).items()}
    again = shared.adapter(STUDENT)
    assert isinstance(again, AdapterView)
    assert all(torch.equal(parameter, before[name]) for name, parameter in shared.parameters(STUDENT).items())


def test_preparing_a_second_adapter_leaves_the_first_one_learning(shared):
    AcceleratorState._reset_state(True)
    method = Both(shared)
    optimizers = prepare(method, TrainerConfig(gradient_checkpointing=True, trackers=[]), Accelerator(cpu=True))
    loss_of({"one": method.modules["one"], "other": method.modules["other"]}, ("one", "other", "one")).backward()
    for name, parameters in method.trained_parameters().items():
        require_trainable(name, parameters)
        require_gradients(name, parameters)
        assert all(parameter.grad is not None for parameter in parameters.values())
        before = [parameter.clone() for parameter in parameters.values()]
        optimizers[name].step()
        assert not any(torch.equal(one, other) for one, other in zip(before, parameters.values(), strict=True))


def test_parameters_that_cannot_learn_are_named(shared):
    parameters = shared.parameters(STUDENT)
    first = next(iter(parameters))
    with pytest.raises(ValueError, match=rf"optimizer student: none of its \d+ parameters got a gradient .*{first}"):
        require_gradients("student", parameters)
    parameters[first].requires_grad_(False)
    with pytest.raises(ValueError, match=rf"optimizer student: 1 of its \d+ parameters do not require gradients .*{first}"):
        require_trainable("student", parameters)
