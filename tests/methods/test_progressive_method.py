"""What the stages ask of their networks: times, noise, and the way from one dialect to another."""

from types import SimpleNamespace

import pytest
import torch

from gendistill.data.batches import Batch
from gendistill.diffusion.guidance import Guidance, GuidanceConfig
from gendistill.diffusion.trained_networks import GUIDANCE_EMBEDDING, full_networks
from gendistill.methods.halving import sampled_times
from gendistill.methods.progressive import GuidanceDistillation, ProgressiveConfig, StepHalving, prediction_loss
from gendistill.runtime.random import PerSampleRandom


def batch_for(teacher, count, generator):
    prompts = (["food", "animals"] * count)[:count]
    return Batch(torch.randn(count, 4, 8, 8, generator=generator), teacher.encode_prompts(prompts))


def method_of(teacher, kind, dialect="v_prediction", *, scale=1.0, mode="baked", **settings):
    networks = full_networks(teacher.denoiser, GUIDANCE_EMBEDDING if mode == "embedded" else None)
    networks.student, networks.average = (
        networks.student.with_prediction_type(dialect),
        networks.average.with_prediction_type(dialect),
    )
    guidance = Guidance(teacher.unconditional(), GuidanceConfig(mode=mode, scale=scale))
    config = ProgressiveConfig(**settings)
    if kind is StepHalving:
        return StepHalving(networks, guidance, config, 4)
    return GuidanceDistillation(networks, guidance, config, sampled_times(16, teacher.denoiser.schedule))


def loss_at(method, batch, step):
    (update,) = method.updates(batch, step, PerSampleRandom(0, step, 0, len(batch.latents)))
    return update.loss


def test_a_student_of_an_epsilon_teacher_goes_over_to_v_without_a_jump(teacher, generator):
    """The first thing that it is asked for is what it says already; asked for v at once it would be far off."""
    batch = batch_for(teacher, 16, generator)
    gradually, at_once = (method_of(teacher, GuidanceDistillation, prediction_type_steps=steps) for steps in (100, 0))
    assert loss_at(gradually, batch, 0) < 1e-12
    losses = [loss_at(gradually, batch, step).item() for step in (10, 50, 90, 99)]
    assert losses == sorted(losses)
    assert losses[0] < 0.2 * losses[-1]
    assert loss_at(at_once, batch, 0) > 0.5


def test_after_the_passage_it_is_fitted_to_v_by_the_weighting_that_was_asked_for(teacher, generator):
    batch, method = (
        batch_for(teacher, 8, generator),
        method_of(teacher, GuidanceDistillation, prediction_type_steps=10, weighting="uniform"),
    )
    called = []
    student = method.networks.student
    method.networks.student = lambda *arguments: called.append(student(*arguments)) or called[-1]
    method.networks.student.prediction_type = student.prediction_type
    targets = []
    target = method.target
    method.target = lambda *arguments: targets.append(target(*arguments)) or targets[-1]
    assert torch.equal(loss_at(method, batch, 10), prediction_loss(called[0], targets[0], "uniform"))


def test_the_prediction_type_of_the_validated_student_does_not_change_during_the_transition(teacher, generator):
    method = method_of(teacher, GuidanceDistillation, prediction_type_steps=100)
    loss_at(method, batch_for(teacher, 2, generator), 30)
    assert method.networks.student.fraction == method.networks.average.fraction == 1.0
    assert method.networks.average.prediction_type == "v_prediction"


@pytest.mark.parametrize("kind", [GuidanceDistillation, StepHalving])
def test_a_student_begins_with_noise_alone_as_its_sampler_does_and_sees_data_later(teacher, generator, kind):
    batch, seen = batch_for(teacher, 64, generator), {}
    for name, latents in (("data", batch.latents), ("other data", batch.latents + 1)):
        method, noisy = method_of(teacher, kind), []
        method.fit = lambda x_t, t, *rest, noisy=noisy: noisy.append((x_t, t)) or torch.zeros(())
        loss_at(method, Batch(latents, batch.conditioning), 0)
        seen[name] = noisy[0]
    (x_t, t), (other, _) = seen["data"], seen["other data"]
    begins = t == 999
    assert 0 < begins.sum() < len(t)
    assert torch.equal(x_t[begins], other[begins])
    assert not any(torch.equal(one, two) for one, two in zip(x_t[~begins], other[~begins], strict=True))


def test_the_guided_pair_is_one_call_of_the_teacher_and_a_halving_two(teacher, generator):
    batch = batch_for(teacher, 6, generator)
    for kind, expected in ((GuidanceDistillation, [12]), (StepHalving, [6, 6])):
        method, sizes = method_of(teacher, kind, scale=3.0), []
        hook = method.networks.teacher.network.register_forward_hook(
            lambda module, arguments, output, sizes=sizes: sizes.append(len(output.sample))
        )
        loss_at(method, batch, 0)
        hook.remove()
        assert sizes == expected, kind


def test_scales_are_sampled_over_the_range_and_are_an_input_of_the_student(teacher, generator):
    batch, method = (
        batch_for(teacher, 64, generator),
        method_of(teacher, GuidanceDistillation, mode="embedded", prediction_type_steps=0),
    )
    told = []
    method.fit = lambda x_t, t, conditioning, *rest: told.append(conditioning.get("guidance_scale")) or torch.zeros(())
    loss_at(method, batch, 0)
    assert told[0].shape == (64,)
    assert 1 <= told[0].min() < 1.5
    assert 5.5 < told[0].max() <= 6


def test_a_halving_asks_at_the_times_of_its_grid_only(teacher, generator):
    method, asked = method_of(teacher, StepHalving), []
    original = method.networks.teacher
    method.networks.teacher = SimpleNamespace(schedule=original.schedule)
    method.networks.teacher = type(original)(
        original.network,
        original.schedule,
        original.prediction_type,
        lambda network, x_t, t, conditioning: asked.append(t.tolist()) or original.call(network, x_t, t, conditioning),
    )
    loss_at(method, batch_for(teacher, 64, generator), 0)
    assert set(asked[0]) == {999, 749, 499, 249}
    assert set(asked[1]) == {874, 624, 374, 124}
