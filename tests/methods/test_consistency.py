"""Consistency distillation against closed forms: a Gaussian's trajectories are known exactly."""

import re
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from diffusers import DDPMScheduler, LCMScheduler

from gendistill.data.batches import Batch
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.guidance import Guidance, GuidanceConfig
from gendistill.diffusion.trained_networks import Networks, full_networks
from gendistill.methods.consistency import (
    ConsistencyConfig,
    ConsistencyDistillation,
    boundary_scalings,
    consistency_function,
    phase_edges,
    phase_function,
    require_grid,
)
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers import ddim_step
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import NoiseSchedule, Prediction, expand_to, skipping, trailing

SCHEDULE = NoiseSchedule.from_scheduler(DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
NOTHING = Conditioning()


@dataclass
class Gaussian:
    """x_0 ~ N(mean, std^2): along the probability-flow ODE (x_t - alpha mean) / spread(t) is constant."""

    mean: float = 0.7
    std: float = 0.4

    def spread(self, t, like):
        return expand_to((SCHEDULE.alpha(t) ** 2 * self.std**2 + SCHEDULE.sigma(t) ** 2).sqrt(), like)

    def denoised(self, x_t, t):
        """E[x_0 | x_t]."""
        alpha = expand_to(SCHEDULE.alpha(t), x_t)
        return self.mean + alpha * self.std**2 / self.spread(t, x_t) ** 2 * (x_t - alpha * self.mean)

    def follow(self, x_t, t, s):
        """x_s on the trajectory through x_t."""
        constant = (x_t - expand_to(SCHEDULE.alpha(t), x_t) * self.mean) / self.spread(t, x_t)
        return expand_to(SCHEDULE.alpha(s), x_t) * self.mean + self.spread(s, x_t) * constant

    def teacher(self):
        return Denoiser(self, SCHEDULE, "sample", lambda network, x_t, t, conditioning: network.denoised(x_t, t))

    def consistent(self):
        """A denoiser whose consistency function is the trajectory's end at t = 0, exactly."""

        def call(network, x_t, t, conditioning):
            c_skip, c_out = (expand_to(c, x_t) for c in boundary_scalings(t))
            end = network.follow(x_t, t, torch.zeros_like(t))
            return torch.where(c_out > 0, (end - c_skip * x_t) / c_out, x_t)

        return Denoiser(self, SCHEDULE, "sample", call)


def solve(teacher, x_t, grid):
    """From the last point of a rising grid down to 0 by the method's solver."""
    falling = [*grid.flip(0), torch.tensor(0)]
    for t, s in pairwise(falling):
        prediction = teacher(x_t, t.expand(len(x_t)), NOTHING)
        x_t = ddim_step(prediction.x_0, prediction.eps, s.expand(len(x_t)), SCHEDULE)
    return x_t


def loss_of(denoiser, num_ddim_timesteps, **settings):
    gaussian = Gaussian()
    config = ConsistencyConfig(num_ddim_timesteps=num_ddim_timesteps, loss="l2", **settings)
    networks = Networks(gaussian.teacher(), denoiser, denoiser, {}, {})
    method = ConsistencyDistillation(networks, Guidance(NOTHING, GuidanceConfig(scale=1.0)), config)
    generator = torch.Generator().manual_seed(1)
    latents = gaussian.mean + gaussian.std * torch.randn(2048, 2, dtype=torch.float64, generator=generator)
    (update,) = method.updates(Batch(latents, NOTHING), 0, PerSampleRandom(0, 0, 0, len(latents)))
    return update.loss.item()


def test_the_solver_converges_to_the_exact_trajectory_at_first_order(generator):
    gaussian = Gaussian()
    x_t = torch.randn(64, 2, dtype=torch.float64, generator=generator)
    exact = gaussian.follow(x_t, torch.tensor(999), torch.tensor(0))
    errors = [(solve(gaussian.teacher(), x_t, skipping(count)) - exact).norm().item() for count in (50, 100, 200)]
    assert errors[-1] < 0.05 * exact.norm().item()
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2, rel=0.2)


def test_the_exact_consistency_function_is_a_fixed_point_as_the_grid_grows_finer():
    losses = [loss_of(Gaussian().consistent(), count) for count in (10, 20, 40, 100)]
    for coarse, fine in pairwise(losses):
        assert fine < coarse / 2
    assert losses[-1] < 1e-5
    assert loss_of(Gaussian().teacher(), 100) > 10 * losses[-1]  # the teacher itself is no fixed point


def test_the_scalings_are_those_of_diffusers_lcm_scheduler_and_a_image_without_noise_is_its_own_end(generator):
    t = torch.arange(0, 1000, 37)
    expected = LCMScheduler().get_scalings_for_boundary_condition_discrete(t)
    for ours, theirs in zip(boundary_scalings(t), expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs.float())
    x_t, x_0 = torch.randn(2, 5, 4, 3, 3, generator=generator)
    end = consistency_function(Prediction(x_0, x_0), x_t, torch.zeros(5, dtype=torch.int64))
    assert torch.equal(end, x_t)


@pytest.mark.parametrize("num_phases", [1, 2, 3, 4, 5, 40])
def test_phases_begin_at_0_and_at_points_of_the_grid(num_phases):
    grid = skipping(40)
    edges = phase_edges(num_phases, grid)
    assert edges[0] == 0
    assert torch.isin(edges[1:], grid).all()
    assert len(edges.unique()) == num_phases
    assert torch.equal(edges, edges.sort().values)


@pytest.mark.parametrize("num_phases", [2, 4])
def test_phases_are_the_steps_of_the_trailing_grid(num_phases):
    visited = trailing(num_phases).flip(0)  # a student of 4 steps goes 999, 749, 499, 249, 0
    assert torch.equal(phase_edges(num_phases, skipping(40)), torch.cat([torch.zeros(1, dtype=torch.int64), visited[:-1]]))


def test_a_phase_function_is_the_identity_at_its_edge(generator):
    x_0, eps = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)
    edge = torch.tensor([0, 249, 499, 749])
    x_t = SCHEDULE.add_noise(x_0, eps, edge)
    torch.testing.assert_close(phase_function(Prediction(x_0, eps), edge, SCHEDULE), x_t)


def test_within_every_phase_the_exact_map_to_its_edge_is_a_fixed_point():
    gaussian, edges = Gaussian(), phase_edges(4, skipping(100))

    def to_edge(network, x_t, t, conditioning):
        """x_0 such that DDIM from (x_t, t) lands on the trajectory at the edge; the target's x_s at an edge stays."""
        edge = edges[(torch.searchsorted(edges, t) - 1).clamp(min=0)]
        alpha_t, sigma_t, alpha_s, sigma_s = (
            expand_to(f(of), x_t) for of in (t, edge) for f in (SCHEDULE.alpha, SCHEDULE.sigma)
        )
        end, slope = network.follow(x_t, t, edge), alpha_s - sigma_s * alpha_t / sigma_t
        return torch.where(slope > 1e-9, (end - sigma_s / sigma_t * x_t) / slope, x_t)

    exact = Denoiser(gaussian, SCHEDULE, "sample", to_edge)
    assert loss_of(exact, 100, num_phases=4) < 1e-4
    assert loss_of(exact, 100, num_phases=4) < loss_of(gaussian.teacher(), 100, num_phases=4) / 10


@pytest.mark.parametrize(
    ("settings", "teacher_batch"),
    [({"mode": "cfg"}, 4), ({"mode": "baked", "scale": 3.0}, 8), ({"mode": "embedded"}, 8)],
)
def test_the_teacher_is_called_once_and_doubles_its_batch_only_where_it_is_guided(teacher, settings, teacher_batch, generator):
    networks = full_networks(teacher.denoiser, 256 if settings["mode"] == "embedded" else None)
    method = ConsistencyDistillation(
        networks, Guidance(teacher.unconditional(), GuidanceConfig(**settings)), ConsistencyConfig()
    )
    batches = {"teacher": [], "student": [], "average": []}
    for name, sizes in batches.items():
        network = getattr(networks, name).network
        network.register_forward_hook(lambda module, arguments, output, sizes=sizes: sizes.append(len(output.sample)))
    batch = Batch(torch.randn(4, 4, 8, 8, generator=generator), teacher.encode_prompts(["food"] * 4))
    list(method.updates(batch, 0, PerSampleRandom(0, 0, 0, 4)))
    assert batches == {"teacher": [teacher_batch], "student": [4], "average": [4]}


def test_the_averages_decay_warms_up_to_its_setting(teacher):
    networks = full_networks(teacher.denoiser)
    method = ConsistencyDistillation(
        networks, Guidance(teacher.unconditional(), GuidanceConfig()), ConsistencyConfig(ema_decay=0.95)
    )
    name = next(iter(networks.trained))
    for step, decay in [(1, 2 / 11), (90, 0.91), (10_000, 0.95)]:
        with torch.no_grad():
            networks.trained[name].fill_(1)
            networks.averaged[name].fill_(0)
        method.after_step(step)
        torch.testing.assert_close(networks.averaged[name], torch.full_like(networks.averaged[name], 1 - decay))


@pytest.mark.parametrize(
    ("timesteps", "grid", "nearest"), [(1000, 300, "250 or 500"), (1000, 64, "50 or 100"), (250, 40, "25 or 50")]
)
def test_a_grid_that_does_not_divide_the_timesteps_is_refused_with_the_nearest_that_do(timesteps, grid, nearest):
    """Its last timestep would not be the one at which samplers begin."""
    sentence = (
        f"consistency.num_ddim_timesteps {grid}: expects a divisor of the teacher's {timesteps} timesteps, such as {nearest}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        require_grid(ConsistencyConfig(num_ddim_timesteps=grid), timesteps)
    for allowed in map(int, nearest.split(" or ")):
        require_grid(ConsistencyConfig(num_ddim_timesteps=allowed), timesteps)
