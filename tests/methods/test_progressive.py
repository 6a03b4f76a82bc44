"""Progressive distillation against closed forms: a Gaussian's denoiser is known exactly, and so are its trajectories."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.guidance import Guidance, GuidanceConfig
from gendistill.methods.halving import halving_target, halving_times, halvings, sampled_times
from gendistill.methods.progressive import WEIGHTINGS, prediction_loss, x_0_weight
from gendistill.samplers import ddim_step, invert_ddim_step
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import (
    PREDICTION_TYPES,
    GridDDIMScheduler,
    NoiseSchedule,
    Prediction,
    StochasticDDIMScheduler,
    expand_to,
    from_prediction,
    to_prediction,
    trailing,
)

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS = {
    "scaled_linear": DDIMScheduler(**BETAS),
    "cosine": DDIMScheduler(beta_schedule="squaredcos_cap_v2"),
    "zero_terminal_snr": DDIMScheduler(**BETAS, rescale_betas_zero_snr=True),
    "flow": FlowMatchEulerDiscreteScheduler(),
    "shifted_flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
}
SCHEDULES = {name: NoiseSchedule.from_scheduler(scheduler) for name, scheduler in SCHEDULERS.items()}
SCALED_LINEAR = SCHEDULES["scaled_linear"]
EDM = NoiseSchedule.from_scheduler(EDMEulerScheduler())
# an epsilon teacher says nothing of x_0 where there is no signal: at zero terminal SNR, and where flow matching begins
DIALECTS = [
    (name, prediction_type)
    for name in SCHEDULES
    for prediction_type in PREDICTION_TYPES
    if prediction_type != "epsilon" or name in ("scaled_linear", "cosine")
]


class Gaussian:
    """x_0 ~ N(mean, covariance) in 5 dimensions, of correlated elements of very unequal spread."""

    def __init__(self, schedule):
        generator = torch.Generator().manual_seed(3)
        self.schedule, self.mean = schedule, torch.randn(5, dtype=torch.float64, generator=generator)
        factor = torch.randn(5, 5, dtype=torch.float64, generator=generator)
        self.covariance = factor @ factor.T / 5 + 0.01 * torch.eye(5, dtype=torch.float64)
        self.variances, self.axes = torch.linalg.eigh(self.covariance)

    def spread(self, t):
        """Standard deviations of x_t along the axes."""
        return (self.schedule.alpha(t) ** 2 * self.variances + self.schedule.sigma(t) ** 2).sqrt()

    def __call__(self, x_t, t):
        """E[x_0 | x_t] and the eps that goes with it, of a batch at one time."""
        alpha, sigma = self.schedule.alpha(t[0]), self.schedule.sigma(t[0])
        offset = (x_t - alpha * self.mean) @ self.axes / self.spread(t[0]) ** 2
        return Prediction(self.mean + offset * alpha * self.variances @ self.axes.T, offset * sigma @ self.axes.T)

    def follow(self, x_t, t, s):
        """x_s on the trajectory of the probability-flow ODE through x_t."""
        along = (x_t - self.schedule.alpha(t) * self.mean) @ self.axes * self.spread(s) / self.spread(t)
        return self.schedule.alpha(s) * self.mean + along @ self.axes.T

    def generate(self, t, count, generator):
        unit = torch.randn(count, 5, dtype=torch.float64, generator=generator)
        return self.schedule.alpha(t) * self.mean + unit * self.spread(t) @ self.axes.T


def steps_of(stage, device_batch):
    """Each step of a stage, its times as batches of `device_batch`."""
    for row in zip(stage.t, stage.middle, stage.s, strict=True):
        yield tuple(time.expand(device_batch) for time in row)


def ddim(denoiser, x, t, s, schedule):
    prediction = denoiser(x, t)
    return ddim_step(prediction.x_0, prediction.eps, s, schedule)


def perfect_student(teacher, stage, prediction_type, schedule):
    """A network of that dialect whose output, at the times of a stage, is its target."""

    def student(x_t, t):
        row = int((stage.t - t[0]).abs().argmin())
        middle, s = stage.middle[row].expand(len(t)), stage.s[row].expand(len(t))
        target = halving_target(teacher, x_t, t, middle, s, schedule)
        output = from_prediction(target, t, prediction_type, schedule)
        return to_prediction(output, x_t, t, prediction_type, schedule)

    return student


@pytest.fixture
def noise(generator):
    return torch.randn(6, 5, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("num_steps", [64, 32, 16, 8, 4, 2, 1, 25, 13, 7, 3, 48])
@pytest.mark.parametrize(("name", "prediction_type"), DIALECTS)
def test_one_student_step_equals_two_teacher_steps(name, prediction_type, num_steps, noise):
    schedule, teacher = SCHEDULES[name], Gaussian(SCHEDULES[name])
    stage = halving_times(num_steps, schedule)
    student, x = perfect_student(teacher, stage, prediction_type, schedule), noise
    for t, middle, s in steps_of(stage, len(x)):
        twice = ddim(teacher, ddim(teacher, x, t, middle, schedule), middle, s, schedule)
        once = ddim(student, x, t, s, schedule)
        torch.testing.assert_close(once, twice, atol=1e-10, rtol=0)
        x = twice


@pytest.mark.parametrize(("name", "prediction_type"), DIALECTS)
def test_one_step_of_the_last_of_six_students_equals_sixty_four_steps_of_the_first_teacher(name, prediction_type, noise):
    schedule, denoiser = SCHEDULES[name], Gaussian(SCHEDULES[name])
    exact = noise
    for t, s in pairwise([*sampled_times(64, schedule), torch.tensor(schedule.clean)]):
        exact = ddim(denoiser, exact, t.expand(6), s.expand(6), schedule)
    for num_steps in halvings(64, 1):
        denoiser = perfect_student(denoiser, halving_times(num_steps, schedule), prediction_type, schedule)
    (last,) = steps_of(halving_times(1, schedule), 6)
    torch.testing.assert_close(ddim(denoiser, noise, last[0], last[2], schedule), exact, atol=1e-10, rtol=0)
    torch.testing.assert_close(denoiser(noise, last[0]).x_0, exact, atol=1e-10, rtol=0)  # one step is x_0 itself


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_target_is_the_formula_of_the_paper_wherever_that_divides_by_nothing(name, noise):
    schedule, teacher = SCHEDULES[name], Gaussian(SCHEDULES[name])
    for t, middle, s in steps_of(halving_times(8, schedule), 6):
        alpha_t, sigma_t, alpha_s, sigma_s = (f(of)[:, None] for of in (t, s) for f in (schedule.alpha, schedule.sigma))
        x_s = ddim(teacher, ddim(teacher, noise, t, middle, schedule), middle, s, schedule)
        ratio = sigma_s / sigma_t
        target = halving_target(teacher, noise, t, middle, s, schedule)
        torch.testing.assert_close(target.x_0, (x_s - ratio * noise) / (alpha_s - ratio * alpha_t), atol=1e-10, rtol=0)
        torch.testing.assert_close(schedule.add_noise(target.x_0, target.eps, t), noise, atol=1e-10, rtol=0)


def test_the_target_holds_for_edm_down_to_the_clean_sample(noise):
    teacher, times = Gaussian(EDM), torch.tensor([999, 600, 200, EDM.clean])
    for t, middle, s in zip(times, times[1:], times[2:], strict=False):
        t, middle, s = t.expand(6), middle.expand(6), s.expand(6)
        x_t = noise * EDM.sigma(t[0])
        twice = ddim(teacher, ddim(teacher, x_t, t, middle, EDM), middle, s, EDM)
        target = halving_target(teacher, x_t, t, middle, s, EDM)
        torch.testing.assert_close(ddim_step(target.x_0, target.eps, s, EDM), twice, atol=1e-10, rtol=0)


def test_the_target_of_a_teacher_on_its_trajectory_is_its_own_prediction_of_a_point(noise):
    """Data without spread: every prediction is the point, however many steps lead there."""
    point = torch.full((6, 5), 0.3, dtype=torch.float64)

    def teacher(x_t, t):
        alpha, sigma = (expand_to(f(t), x_t) for f in (SCALED_LINEAR.alpha, SCALED_LINEAR.sigma))
        return Prediction(point, (x_t - alpha * point) / sigma)

    for t, middle, s in steps_of(halving_times(4, SCALED_LINEAR), 6):
        torch.testing.assert_close(halving_target(teacher, noise, t, middle, s, SCALED_LINEAR).x_0, point)


def test_the_steps_of_a_teacher_that_clips_its_images_are_met_as_well(noise):
    """Its x_0 and eps do not make x_t any more, as in diffusers' schedulers; its two steps are still one of the student's."""
    exact = Gaussian(SCALED_LINEAR)

    def clipping(x_t, t):
        return Prediction(exact(x_t, t).x_0.clamp(-0.3, 0.3), exact(x_t, t).eps)

    for t, middle, s in steps_of(halving_times(4, SCALED_LINEAR), 6):
        twice = ddim(clipping, ddim(clipping, noise, t, middle, SCALED_LINEAR), middle, s, SCALED_LINEAR)
        target = halving_target(clipping, noise, t, middle, s, SCALED_LINEAR)
        torch.testing.assert_close(ddim_step(target.x_0, target.eps, s, SCALED_LINEAR), twice, atol=1e-10, rtol=0)
    assert target.x_0.abs().max() <= 0.3  # of the last step: what is sampled is clipped


def test_no_gradient_reaches_the_teacher(noise):
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    (step, *_) = steps_of(halving_times(4, SCALED_LINEAR), 6)
    target = halving_target(lambda x_t, t: Prediction(scale * x_t, x_t), noise, *step, SCALED_LINEAR)
    assert not target.x_0.requires_grad
    assert not target.eps.requires_grad


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 7, 8, 13, 16, 25, 32, 48, 64, 500])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_student_goes_where_its_sampler_goes_and_its_teacher_through_a_point_between(name, num_steps):
    stage = halving_times(num_steps, SCHEDULES[name])
    scheduler = GridDDIMScheduler()
    scheduler.set_timesteps(num_steps)
    assert torch.equal(stage.t, scheduler.timesteps)
    assert [*stage.s] == [scheduler.time_after(t, 1) for t in scheduler.timesteps]
    assert not any(times.is_floating_point() for times in (stage.t, stage.middle, stage.s))
    assert torch.equal(stage.s[:-1], stage.t[1:])
    assert stage.s[-1] == SCHEDULES[name].clean
    assert (stage.t > stage.middle).all()
    assert (stage.middle > stage.s).all()


@pytest.mark.parametrize("num_steps", [1, 2, 4, 7, 8, 13, 16, 25, 32, 64])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_teacher_goes_where_it_went_as_a_student(name, num_steps):
    stage, as_student = halving_times(num_steps, SCHEDULES[name]), halving_times(2 * num_steps, SCHEDULES[name])
    torch.testing.assert_close(torch.stack([stage.t, stage.middle], 1).flatten(), as_student.t)


def test_of_the_stochastic_sampler_each_step_is_two_of_its_grid_and_the_last_one():
    stage, grid = halving_times(4, SCALED_LINEAR, stochastic=True), trailing(8).tolist()
    assert stage.t.tolist() == grid
    assert stage.s.tolist() == [*grid[2:], -1, -1]
    assert stage.middle.tolist() == [*grid[1:], trailing(16).tolist()[-1]]


GRID = [999, 760, 520, 210]


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_grid_of_ones_own_is_halved_and_doubled_around(stochastic):
    assert sampled_times(4, SCALED_LINEAR, GRID).tolist() == GRID
    assert sampled_times(2, SCALED_LINEAR, GRID).tolist() == [999, 520]
    assert sampled_times(1, SCALED_LINEAR, GRID).tolist() == [999]
    assert sampled_times(8, SCALED_LINEAR, GRID).tolist() == [999, 879, 760, 640, 520, 365, 210, 104]
    for num_steps in (32, 16, 8, 4, 2, 1):
        stage = halving_times(num_steps, SCALED_LINEAR, stochastic=stochastic, grid=GRID)
        assert set(stage.t.tolist()) <= set(sampled_times(2 * num_steps, SCALED_LINEAR, GRID).tolist())
        assert set(stage.middle.tolist()) <= set(sampled_times(4 * num_steps, SCALED_LINEAR, GRID).tolist())


@pytest.mark.parametrize(("num_steps", "grid", "sentence"), [(3, GRID, "does not nest in one of 3"), (4, [2, 1], "room for 4")])
def test_a_grid_that_cannot_be_nested_is_refused(num_steps, grid, sentence):
    with pytest.raises(ValueError, match=sentence):
        sampled_times(num_steps, SCALED_LINEAR, grid)


@pytest.mark.parametrize("num_steps", [501, 1000, 2000])
def test_two_teacher_steps_that_cannot_be_distinct_are_refused(num_steps):
    with pytest.raises(ValueError, match=rf"^{num_steps} student steps: between timesteps .* there is none for the teacher's"):
        halving_times(num_steps, SCALED_LINEAR)


@pytest.mark.parametrize(
    ("teacher_steps", "student_steps", "counts"),
    [
        (64, 1, (32, 16, 8, 4, 2, 1)),
        (64, 4, (32, 16, 8, 4)),
        (2, 1, (1,)),
        (50, 4, (25, 13, 7, 4)),
        (1000, 8, (500, 250, 125, 63, 32, 16, 8)),
    ],
)
def test_the_stages_halve_down_to_the_steps_asked_for(teacher_steps, student_steps, counts):
    assert halvings(teacher_steps, student_steps) == counts


@pytest.mark.parametrize("student_steps", [0, 8, 9])
def test_a_student_of_as_many_steps_as_its_teacher_is_refused(student_steps):
    with pytest.raises(ValueError, match=rf"^{student_steps} student steps: expects 1 to 7, less than the teacher's$"):
        halvings(8, student_steps)


def pair_at(t, schedule, generator):
    """Two predictions of one x_t."""
    x_t, *x_0 = torch.randn(3, len(t), 5, dtype=torch.float64, generator=generator)
    return x_t, *(to_prediction(guess, x_t, t, "sample", schedule) for guess in x_0)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_loss_is_the_weighted_error_of_x_0(name, weighting, generator):
    t = torch.tensor([1, 20, 250, 500, 750, 999])
    _, one, other = pair_at(t, SCHEDULES[name], generator)
    expected = x_0_weight(t, weighting, SCHEDULES[name])[:, None] * (one.x_0 - other.x_0).square()
    torch.testing.assert_close(prediction_loss(one, other, weighting), expected.mean(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_snr_weighs_as_the_error_of_eps_and_snr_plus_one_as_that_of_v_where_variance_is_preserved(name, generator):
    t = torch.tensor([1, 20, 250, 500, 750, 999])
    _, one, other = pair_at(t, SCHEDULES[name], generator)

    def error(prediction_type):
        outputs = (from_prediction(prediction, t, prediction_type, SCHEDULES[name]) for prediction in (one, other))
        return torch.nn.functional.mse_loss(*outputs)

    torch.testing.assert_close(prediction_loss(one, other, "snr"), error("epsilon"))
    torch.testing.assert_close(prediction_loss(one, other, "uniform"), error("sample"))
    if "flow" not in name:
        torch.testing.assert_close(prediction_loss(one, other, "snr_plus_one"), error("v_prediction"))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_without_any_signal_a_loss_and_its_gradient_are_finite(prediction_type, weighting, noise):
    schedule, t = SCHEDULES["zero_terminal_snr"], torch.full((6,), 999)
    output = noise.clone().requires_grad_()
    loss = prediction_loss(to_prediction(output, noise, t, prediction_type, schedule), Gaussian(schedule)(noise, t), weighting)
    loss.backward()
    assert loss.isfinite()
    assert output.grad.isfinite().all()
    if weighting == "snr":  # why the paper does not train by it
        assert loss < 1e-25
    else:
        assert output.grad.abs().max() > 1e-3


def test_an_unknown_weighting_is_refused_by_both():
    with pytest.raises(ValueError, match=r"^weighting 'min_snr' is not known; expects one of truncated_snr, snr_plus_one, "):
        x_0_weight(torch.tensor(5), "min_snr", SCALED_LINEAR)
    with pytest.raises(ValueError, match=r"^weighting 'min_snr' is not known"):
        prediction_loss(Prediction(torch.ones(1), torch.ones(1)), Prediction(torch.ones(1), torch.ones(1)), "min_snr")


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_network_that_outputs_the_target_in_another_prediction_type_equals_its_teacher(prediction_type, noise):
    teacher, t = Gaussian(SCALED_LINEAR), torch.full((6,), 300)
    output = from_prediction(teacher(noise, t), t, prediction_type, SCALED_LINEAR)
    found = to_prediction(output, noise, t, prediction_type, SCALED_LINEAR)
    assert prediction_loss(found, teacher(noise, t), "snr_plus_one") < 1e-25


def test_read_as_v_an_epsilon_network_is_right_only_where_there_is_little_noise(generator):
    teacher, errors = Gaussian(SCALED_LINEAR), []
    for time in (0, 10, 100, 500):
        t, x_t = torch.full((512,), time), teacher.generate(torch.tensor(time), 512, generator)
        eps = teacher(x_t, t).eps
        as_v = from_prediction(teacher(x_t, t), t, "v_prediction", SCALED_LINEAR)
        errors.append((eps - as_v).square().mean().item())
    assert errors == sorted(errors)
    assert errors[0] < 0.01
    assert errors[-1] > 0.5


def test_a_guided_teacher_is_halved_as_any_other(noise):
    """Two classes, each a point: guidance is a known mixture of two straight lines."""
    points = torch.tensor([0.5, -1.0], dtype=torch.float64)

    def call(network, x_t, t, conditioning):
        return points[conditioning["class_labels"]][:, None].expand_as(x_t)

    denoiser = Denoiser(None, SCALED_LINEAR, "sample", call)
    labels, scale = torch.tensor([0, 1, 0, 1, 0, 1]), torch.tensor([1.0, 1.0, 2.0, 2.0, 5.0, 5.0], dtype=torch.float64)
    guidance = Guidance(Conditioning(class_labels=torch.tensor([1])), GuidanceConfig())

    def teacher(x_t, t):
        return guidance.predict(denoiser, x_t, t, Conditioning(class_labels=labels), scale)

    guided = points[1] + scale * (points[labels] - points[1])
    for t, middle, s in steps_of(halving_times(4, SCALED_LINEAR), 6):
        target = halving_target(teacher, noise, t, middle, s, SCALED_LINEAR)
        torch.testing.assert_close(target.x_0, guided[:, None].expand(6, 5))


def covariance_error(x, gaussian):
    return ((x.T.cov() - gaussian.covariance).norm() / gaussian.covariance.norm()).item()


def sample(scheduler, network, x, num_steps, generator):
    """Through the scheduler itself; `network` says x_0 and eps at (x, t)."""
    scheduler.set_timesteps(num_steps)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(len(x))).x_0, t, x, generator=generator).prev_sample
    return x


@pytest.mark.parametrize("num_steps", [2, 4, 8])
def test_the_stochastic_sampler_samples_the_data_with_a_student_of_its_steps(num_steps, generator):
    """A student that goes along the trajectory exactly for two grid steps: noise back from there is the law of one."""
    gaussian, stage = Gaussian(SCALED_LINEAR), halving_times(num_steps // 2, SCALED_LINEAR, stochastic=True)

    def student(x_t, t):
        s = stage.s[int((stage.t == t[0]).long().argmax())]
        return Prediction(*invert_ddim_step(x_t, t, gaussian.follow(x_t, t[0], s), s, SCALED_LINEAR))

    scheduler = StochasticDDIMScheduler(**BETAS, prediction_type="sample", clip_sample=False)
    x = sample(scheduler, student, gaussian.generate(torch.tensor(999), 100_000, generator), num_steps, generator)
    assert covariance_error(x, gaussian) < 0.015
    torch.testing.assert_close(x.mean(0), gaussian.mean, atol=0.02, rtol=0)


def test_with_an_exact_denoiser_the_stochastic_sampler_samples_the_data_as_its_steps_grow_many(generator):
    gaussian, errors = Gaussian(SCALED_LINEAR), []
    scheduler = StochasticDDIMScheduler(**BETAS, prediction_type="sample", clip_sample=False)
    for num_steps in (10, 50, 250):
        x = gaussian.generate(torch.tensor(999), 20_000, generator)
        errors.append(covariance_error(sample(scheduler, gaussian, x, num_steps, generator), gaussian))
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2 < 0.1
