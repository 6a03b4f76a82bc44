"""What the stages ask of their networks: times, noise, and the way from one dialect to another."""

from types import SimpleNamespace

import pytest
import torch

from gendistill.data.batches import Batch
from gendistill.diffusion.guidance import Guidance, GuidanceConfig
from gendistill.diffusion.rollout import few_step_rollout
from gendistill.diffusion.trained_networks import GUIDANCE_EMBEDDING, full_networks, next_networks
from gendistill.methods.halving import sampled_times
from gendistill.methods.progressive import GuidanceDistillation, ProgressiveConfig, StepHalving, prediction_loss
from gendistill.runtime.random import PerSampleRandom
from gendistill.schedulers import student_scheduler


def batch_for(teacher, count, generator):
    prompts = (["food", "animals"] * count)[:count]
    return Batch(torch.randn(count, 4, 8, 8, generator=generator), teacher.encode_prompts(prompts))


def method_of(teacher, kind, dialect="v_prediction", *, scale=1.0, mode="baked", max_steps=None, **settings):
    networks = full_networks(teacher.denoiser, GUIDANCE_EMBEDDING if mode == "embedded" else None)
    fraction = 1.0 if dialect == teacher.denoiser.prediction_type else 0.0
    networks.student = networks.student.with_prediction_type(dialect, fraction)
    networks.average = networks.average.with_prediction_type(dialect, fraction)
    guidance = Guidance(teacher.unconditional(), GuidanceConfig(mode=mode, scale=scale))
    config = ProgressiveConfig(**settings)
    if kind is StepHalving:
        return StepHalving(networks, guidance, config, 4)
    times = sampled_times(16, teacher.denoiser.schedule)
    return GuidanceDistillation(networks, guidance, config, times, max_steps=max_steps)


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
    seen, fit = [], method.fit
    method.fit = lambda *arguments: seen.append(arguments) or fit(*arguments)
    loss = loss_at(method, batch, 10)
    x_t, t, conditioning, target, _ = seen[0]
    assert method.networks.student.fraction == 1
    assert torch.equal(loss, prediction_loss(method.networks.student(x_t, t, conditioning), target, "uniform"))


def test_the_average_is_read_as_the_mix_that_it_predicts(teacher):
    """The EMA lags: the output that its average weights give is the average of the outputs that were fitted."""
    method = method_of(teacher, GuidanceDistillation, prediction_type_steps=100)
    expected, fractions = 0.0, []
    for step in range(1, 401):
        decay = min(0.99, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * min((step - 1) / 100, 1)
        method.weights_of(step)
        fractions.append(method.networks.average.fraction)
        assert fractions[-1] == (pytest.approx(expected) if expected < 0.99 else 1)
    assert fractions == sorted(fractions)
    assert fractions[49] < 0.45 < fractions[99] < 1 == fractions[199]
    method.weights_of(50)  # the best weights may be those of an earlier step
    assert method.networks.average.fraction == fractions[49]
    resumed = method_of(teacher, GuidanceDistillation, prediction_type_steps=100, max_steps=60)
    resumed.load_state_dict(method.state_dict())
    resumed.weights_of(50)
    assert resumed.networks.average.fraction == fractions[49]


def test_a_stage_that_ends_early_hands_its_mix_over_and_the_next_one_completes_it(teacher, generator):
    method = method_of(teacher, GuidanceDistillation, prediction_type_steps=100)
    method.weights_of(50)
    before, half = method.networks.average, next_networks(method.networks)
    halving = StepHalving(half, method.guidance, method.config, 4)
    assert halving.networks.teacher.fraction == halving.start == before.fraction < 0.5
    loss_at(halving, batch_for(teacher, 2, generator), 0)
    assert halving.networks.student.fraction == halving.start
    assert halving.fraction(100) == halving.average_fraction(200) == 1
    prompts, x_t, t = (
        teacher.encode_prompts(["food"] * 2),
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.tensor([999, 312]),
    )
    with torch.no_grad():
        assert torch.equal(halving.networks.teacher(x_t, t, prompts).x_0, before(x_t, t, prompts).x_0)


@pytest.mark.parametrize("max_steps", [1, 2, 3, 8, 30, 300, 1000])
def test_a_stage_has_completed_the_change_at_its_last_step(teacher, max_steps):
    method = method_of(teacher, GuidanceDistillation, max_steps=max_steps)
    assert method.average_fraction(max_steps) == method.fraction(max_steps) == 1
    assert method.change_steps <= min(max_steps / 2, 300)
    assert method.change_steps == 300 or max_steps < 1000


@torch.no_grad()
def test_a_mix_is_validated_by_the_schedulers_of_plain_pipelines(teacher, generator):
    """A pipeline whose network predicts a mix of eps and v samples as DDIM with the mix's own x_0 and eps."""
    pipeline, mixed = teacher.pipeline, teacher.denoiser.with_prediction_type("v_prediction", 0.4)
    noise, prompts = torch.randn(1, 4, 8, 8, generator=generator), teacher.encode_prompts(["food"])
    pipeline.scheduler = student_scheduler("ddim", pipeline.scheduler.config, "v_prediction", steps=[4])
    with mixed.converting(teacher.network):
        sampled = pipeline("food", latents=noise, num_inference_steps=4, guidance_scale=1, output_type="latent").images
    expected = few_step_rollout(mixed, noise, prompts, 4)[0]
    torch.testing.assert_close(sampled, expected, atol=1e-3, rtol=1e-4)
    complete = few_step_rollout(mixed.with_prediction_type("v_prediction"), noise, prompts, 4)[0]
    assert (complete - expected).abs().max() > 0.1


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
