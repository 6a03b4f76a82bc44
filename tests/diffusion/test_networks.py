import pytest
import torch
from tiny_pipeline import tiny_unet

from gendistill.diffusion.trained_networks import copy_network, full_networks, lora_config, lora_networks

T = torch.tensor([999, 19])


@pytest.fixture
def inputs(teacher, generator):
    return torch.randn(2, 4, 8, 8, generator=generator), T, teacher.encode_prompts(["food", "emoji of animals"])


def train_a_little(networks, inputs):
    loss = networks.student(*inputs).eps.square().mean()
    loss.backward()
    torch.optim.SGD([p for p in networks.trained.values() if p.grad is not None], 0.1).step()
    return {name for name, parameter in networks.trained.items() if parameter.grad is not None}


def make(kind, teacher):
    return (
        full_networks(teacher.denoiser)
        if kind == "full"
        else lora_networks(teacher.denoiser, lora_config(teacher.family.lora_targets, 4))
    )


@torch.no_grad()
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_student_and_average_start_as_the_teacher(teacher, inputs, kind):
    networks = make(kind, teacher)
    expected = networks.teacher(*inputs).eps
    assert torch.equal(networks.student(*inputs).eps, expected)
    assert torch.equal(networks.average(*inputs).eps, expected)


@torch.no_grad()
def test_a_w_conditioned_student_starts_as_the_teacher_at_every_scale(teacher, inputs):
    x_t, t, conditioning = inputs
    networks = full_networks(teacher.denoiser, 256)
    expected = networks.teacher(x_t, t, conditioning).eps
    for scale in (1.0, 4.0):
        guided = conditioning.with_guidance(torch.full((2,), scale))
        assert torch.equal(networks.student(x_t, t, guided).eps, expected)
    assert networks.student.network.config["time_cond_proj_dim"] == 256


def test_a_w_conditioned_student_learns_to_tell_scales_apart(teacher, inputs):
    x_t, t, conditioning = inputs
    networks = full_networks(teacher.denoiser, 256)
    low, high = (conditioning.with_guidance(torch.full((2,), scale)) for scale in (1.0, 4.0))
    assert "time_embedding.cond_proj.weight" in train_a_little(networks, (x_t, t, high))
    with torch.no_grad():
        assert not torch.equal(networks.student(x_t, t, low).eps, networks.student(x_t, t, high).eps)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_teacher_and_the_average_stay_when_the_student_learns(teacher, inputs, kind):
    networks = make(kind, teacher)
    with torch.no_grad():
        before = networks.teacher(*inputs).eps
    train_a_little(networks, inputs)
    with torch.no_grad():
        assert not torch.equal(networks.student(*inputs).eps, before)
        assert torch.equal(networks.teacher(*inputs).eps, before)
        assert torch.equal(networks.average(*inputs).eps, before)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_average_follows_by_its_decay(teacher, inputs, kind):
    networks = make(kind, teacher)
    before = {name: tensor.clone() for name, tensor in networks.averaged.items()}
    train_a_little(networks, inputs)
    networks.update_average(0.75)
    for name, parameter in networks.averaged.items():
        torch.testing.assert_close(parameter, 0.75 * before[name] + 0.25 * networks.trained[name])
    networks.update_average(0.0)
    with torch.no_grad():
        torch.testing.assert_close(networks.average(*inputs).eps, networks.student(*inputs).eps)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_an_average_is_restored_from_its_state(teacher, inputs, kind):
    networks = make(kind, teacher)
    train_a_little(networks, inputs)
    networks.update_average(0.5)
    state = {name: tensor.clone() for name, tensor in networks.average_state().items()}
    networks.update_average(0.0)
    networks.load_average(state)
    for name, parameter in networks.averaged.items():
        assert torch.equal(parameter, state[name])


def test_lora_networks_share_one_base(teacher):
    base = teacher.network
    parameters = sum(parameter.numel() for parameter in base.parameters())
    networks = lora_networks(teacher.denoiser, lora_config(teacher.family.lora_targets, 4))
    views = [networks.teacher.network, networks.student.network, networks.average.network]
    assert all(view.base is base for view in views)
    adapters = sum(p.numel() for p in [*networks.trained.values(), *networks.averaged.values()])
    assert sum(parameter.numel() for parameter in base.parameters()) == parameters + adapters


def test_only_the_students_adapter_gets_a_gradient(teacher, inputs):
    networks = lora_networks(teacher.denoiser, lora_config(teacher.family.lora_targets, 4))
    frozen = {name: parameter.clone() for name, parameter in teacher.network.named_parameters() if "lora" not in name}
    with torch.no_grad():
        networks.average(*inputs)  # the target is computed before the student, and must leave it trainable
    train_a_little(networks, inputs)
    trained = {id(parameter) for parameter in networks.trained.values()}
    for name, parameter in teacher.network.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), name
        assert name not in frozen or torch.equal(parameter, frozen[name])


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_student_of_a_half_precision_teacher_learns_in_float32(teacher, inputs, kind):
    teacher.network.bfloat16()
    networks = make(kind, teacher)
    assert {parameter.dtype for parameter in networks.trained.values()} == {torch.float32}
    assert {parameter.dtype for parameter in networks.averaged.values()} == {torch.float32}
    assert torch.isfinite(networks.student(*inputs).x_0).all()


def test_a_network_whose_config_does_not_mention_guidance_can_be_w_conditioned(generator):
    network = tiny_unet()  # as Stable Diffusion 1.5's, whose config.json is older than the setting
    assert "time_cond_proj_dim" in network.config["_use_default_values"]
    copied = copy_network(network, 256)
    x_t, embeds, w = (torch.randn(2, *shape, generator=generator) for shape in ((4, 8, 8), (5, 32), (256,)))
    with torch.no_grad():
        expected = network(x_t, T, embeds).sample
        assert torch.equal(copied(x_t, T, embeds, timestep_cond=w).sample, expected)
