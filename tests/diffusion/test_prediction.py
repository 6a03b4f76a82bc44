import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from gendistill.schedulers import PREDICTION_TYPES, NoiseSchedule, Prediction, from_prediction, to_prediction

SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULES = [
    (DDPMScheduler(**SCALED_LINEAR), [0, 1, 500, 999]),
    (DDPMScheduler(beta_schedule="squaredcos_cap_v2"), [0, 1, 500, 990]),
    (FlowMatchEulerDiscreteScheduler(), [1, 10, 500, 990]),
    (EDMEulerScheduler(), [0, 10, 500, 990]),
]


def generate(generator, count=4):
    return torch.randn(count, 3, 2, 2, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize(("scheduler", "t"), SCHEDULES)
def test_an_output_becomes_x_0_and_eps_that_make_x_t_and_comes_back(scheduler, t, prediction_type, generator):
    schedule, t = NoiseSchedule.from_scheduler(scheduler), torch.tensor(t)
    x_t, output = generate(generator), generate(generator)
    prediction = to_prediction(output, x_t, t, prediction_type, schedule)
    torch.testing.assert_close(schedule.add_noise(prediction.x_0, prediction.eps, t), x_t, atol=1e-10, rtol=1e-10)
    back = from_prediction(prediction, t, prediction_type, schedule)
    torch.testing.assert_close(back, output, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize(("scheduler", "t"), SCHEDULES)
def test_x_0_and_eps_survive_every_dialect(scheduler, t, prediction_type, generator):
    schedule, t = NoiseSchedule.from_scheduler(scheduler), torch.tensor(t)
    x_0, eps = generate(generator), generate(generator)
    output = from_prediction(Prediction(x_0, eps), t, prediction_type, schedule)
    found = to_prediction(output, schedule.add_noise(x_0, eps, t), t, prediction_type, schedule)
    torch.testing.assert_close(found.x_0, x_0, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(found.eps, eps, atol=1e-10, rtol=1e-10)


def test_v_is_diffusers_velocity(generator):
    scheduler = DDPMScheduler(**SCALED_LINEAR)
    x_0, eps, t = generate(generator), generate(generator), torch.tensor([0, 10, 500, 999])
    ours = from_prediction(Prediction(x_0, eps), t, "v_prediction", NoiseSchedule.from_scheduler(scheduler))
    torch.testing.assert_close(ours, scheduler.get_velocity(x_0, eps, t), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_x_0_is_that_of_diffusers_step(prediction_type, generator):
    scheduler = DDPMScheduler(**SCALED_LINEAR, prediction_type=prediction_type, clip_sample=False)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    x_t, output = generate(generator).float(), generate(generator).float()
    for t in (0, 500, 999):
        theirs = scheduler.step(output, t, x_t).pred_original_sample
        ours = to_prediction(output, x_t, torch.full((4,), t), prediction_type, schedule).x_0
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_flow_is_the_derivative_of_a_straight_trajectory(generator):
    schedule = NoiseSchedule.from_scheduler(FlowMatchEulerDiscreteScheduler())
    x_0, eps, t = generate(generator), generate(generator), torch.full((4,), 300.0)
    change = schedule.add_noise(x_0, eps, t + 1) - schedule.add_noise(x_0, eps, t)
    flow = from_prediction(Prediction(x_0, eps), t, "flow", schedule)
    torch.testing.assert_close(change * schedule.num_train_timesteps, flow, atol=1e-9, rtol=1e-9)


def test_at_zero_terminal_snr_v_and_x_0_networks_still_say_x_0(generator):
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler(**SCALED_LINEAR, rescale_betas_zero_snr=True))
    x_0, eps, t = generate(generator), generate(generator), torch.full((4,), 999)
    for prediction_type in ("v_prediction", "sample"):
        output = from_prediction(Prediction(x_0, eps), t, prediction_type, schedule)
        found = to_prediction(output, schedule.add_noise(x_0, eps, t), t, prediction_type, schedule)
        torch.testing.assert_close(found.x_0, x_0)
        torch.testing.assert_close(found.eps, eps)


def test_an_unknown_dialect_is_refused_in_one_sentence(generator):
    schedule, x = NoiseSchedule.from_scheduler(DDPMScheduler()), generate(generator)
    with pytest.raises(ValueError, match=r"^prediction_type 'noise' is not known; expects one of epsilon, sample, v_pred"):
        to_prediction(x, x, torch.zeros(4), "noise", schedule)
    with pytest.raises(ValueError, match=r"^prediction_type 'noise' is not known"):
        from_prediction(Prediction(x, x), torch.zeros(4), "noise", schedule)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "flow"])
@pytest.mark.parametrize(("scheduler", "t"), SCHEDULES)
def test_a_network_on_its_way_from_the_noise_says_x_0_and_eps_all_the_way(scheduler, t, prediction_type, share, generator):
    schedule, t = NoiseSchedule.from_scheduler(scheduler), torch.tensor(t)
    x_0, eps = generate(generator), generate(generator)
    output = from_prediction(Prediction(x_0, eps), t, prediction_type, schedule, share)
    whole = from_prediction(Prediction(x_0, eps), t, prediction_type, schedule)
    torch.testing.assert_close(output, (1 - share) * eps + share * whole, atol=1e-12, rtol=0)
    found = to_prediction(output, schedule.add_noise(x_0, eps, t), t, prediction_type, schedule, share)
    torch.testing.assert_close(found.x_0, x_0, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(found.eps, eps, atol=1e-9, rtol=1e-9)


def test_on_the_way_to_v_a_network_says_x_0_even_where_there_is_noise_alone(generator):
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler(**SCALED_LINEAR, rescale_betas_zero_snr=True))
    x_0, eps, t = generate(generator), generate(generator), torch.full((4,), 999)
    output = from_prediction(Prediction(x_0, eps), t, "v_prediction", schedule, 0.01)
    torch.testing.assert_close(to_prediction(output, eps, t, "v_prediction", schedule, 0.01).x_0, x_0)


def test_there_is_no_way_from_the_noise_to_x_0(generator):
    schedule, x = NoiseSchedule.from_scheduler(DDPMScheduler()), generate(generator)
    with pytest.raises(ValueError, match=r"^fraction 0.5 of sample: expects 1; between eps and x_0"):
        to_prediction(x, x, torch.zeros(4), "sample", schedule, 0.5)
