"""Consistency distillation (Song et al. 2023) of guided latent diffusion (Luo et al. 2023, LCM).

A consistency function f(x_t, t) maps every point of a trajectory of the probability-flow ODE to the trajectory's end.
The teacher makes one solver step on that trajectory, from x_t to x_s, and the student is trained to map both to the same x_0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gendistill.data.batches import Batch
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.guidance import Guidance
from gendistill.diffusion.trained_networks import Networks
from gendistill.losses.pixel import l2, pseudo_huber
from gendistill.methods.alignment import needs_trajectories
from gendistill.methods.auxiliary_losses import auxiliary_losses
from gendistill.methods.denoiser_method import AuxiliaryLoss, DenoiserContext, DenoiserMethod, LossAndLogs
from gendistill.methods.recipe import Recipe, RunConfig, Stage, Supports
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers import ddim_step
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import NoiseSchedule, Prediction, expand_to, nearest_divisors, skipping
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.section import Section


class ConsistencyConfig(Section):
    """Consistency distillation (`--method consistency`)."""

    num_ddim_timesteps: int = Field(
        40,
        ge=2,
        description="Number K of timesteps of the DDIM solver grid, a divisor of the teacher's timesteps (1000); 40 holds the "
        "sampling grids of 1, 2, 4 and 8 steps",
        json_schema_extra=about("timesteps", papers.LCM, "section 4.3"),
    )
    num_phases: int = Field(
        1,
        ge=1,
        description="Number of phases of multistep consistency, for students of as many steps or more; 1 is plain consistency",
        json_schema_extra=about("phases", papers.MULTISTEP_CONSISTENCY, "section 3"),
    )
    loss: Literal["pseudo_huber", "l2"] = Field(
        "pseudo_huber",
        description="Distance between the consistency functions at the two ends of a solver step",
        json_schema_extra=about(paper=papers.IMPROVED_CONSISTENCY, at="section 3.3"),
    )
    target: Literal["ema", "student"] = Field(
        "ema",
        description="Network that predicts the target, without gradient: the moving average, or the student itself",
        json_schema_extra=about(paper=papers.CONSISTENCY, at="algorithm 2"),
    )
    ema_decay: float = Field(
        0.95,
        ge=0,
        lt=1,
        description="Decay per step of the moving average, which predicts the target and is exported as the student",
        json_schema_extra=about(paper=papers.LCM, at="algorithm 1"),
    )

    @model_validator(mode="after")
    def _phases_fit_the_grid(self) -> ConsistencyConfig:
        if self.num_phases > self.num_ddim_timesteps:
            raise ValueError(
                f"consistency.num_phases {self.num_phases}: expects at most num_ddim_timesteps ({self.num_ddim_timesteps})"
            )
        return self


def boundary_scalings(t: Tensor, sigma_data: float = 0.5, timestep_scaling: float = 10.0) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of f = c_skip x_t + c_out x_0, with f(x, 0) = x (Luo et al. 2023, section 4.1 and appendix C).

    t (B,) in timestep units. With this `timestep_scaling`, f is close to the network's x_0 for all but the first timesteps.
    """
    scaled = t.double() * timestep_scaling
    c_skip = sigma_data**2 / (scaled**2 + sigma_data**2)
    c_out = scaled / (scaled**2 + sigma_data**2).sqrt()
    return c_skip, c_out


def consistency_function(prediction: Prediction, x_t: Tensor, t: Tensor) -> Tensor:
    """f(x_t, t): the end of the trajectory through x_t, as predicted by the denoiser (Song et al. 2023, eq. 5)."""
    c_skip, c_out = boundary_scalings(t)
    return expand_to(c_skip, x_t) * x_t + expand_to(c_out, x_t) * prediction.x_0


def phase_function(prediction: Prediction, edge: Tensor, schedule: NoiseSchedule) -> Tensor:
    """f(x_t, t) onto the lower edge of t's phase, not onto t = 0 (Heek et al. 2024, section 3; Wang et al. 2024, PCM).

    One DDIM step. At t = edge it is the identity for any prediction, so the boundary condition holds without scalings.
    """
    return ddim_step(prediction.x_0, prediction.eps, edge, schedule)


def variance_preserving(x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x_t / sqrt(alpha^2 + sigma^2), so that a loss of x_t does not depend on the kind of the noise schedule."""
    return x_t / expand_to((schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2).sqrt(), x_t)


def phase_edges(num_phases: int, grid: Tensor) -> Tensor:
    """The lower edges (P,) of P equal phases of a solver grid (K,), ascending from 0; the others are points of the grid."""
    counts = [round(len(grid) * phase / num_phases) for phase in range(num_phases)]  # points of the grid below each phase
    return torch.stack([grid[count - 1] if count else torch.zeros_like(grid[0]) for count in counts])


def require_grid(config: ConsistencyConfig, timesteps: int) -> None:
    """Raise ValueError where the solver grid does not divide the teacher's timesteps: samplers begin at the last of these."""
    if config.num_ddim_timesteps > timesteps:
        raise ValueError(
            f"consistency.num_ddim_timesteps {config.num_ddim_timesteps}: expects at most the teacher's {timesteps} timesteps"
        )
    if timesteps % config.num_ddim_timesteps:
        nearest = " or ".join(map(str, nearest_divisors(config.num_ddim_timesteps, timesteps)))
        raise ValueError(
            f"consistency.num_ddim_timesteps {config.num_ddim_timesteps}: expects a divisor of the teacher's {timesteps} "
            f"timesteps, such as {nearest}"
        )


class ConsistencyDistillation(DenoiserMethod):
    """The consistency loss between the student and its EMA, with the teacher as the solver.

    Raises:
        ValueError: the number of points of the solver grid does not divide the teacher's timesteps.
    """

    name = "consistency"

    def __init__(
        self,
        networks: Networks,
        guidance: Guidance,
        config: ConsistencyConfig,
        auxiliary: Sequence[AuxiliaryLoss] = (),
    ) -> None:
        self.networks, self.guidance, self.config, self.auxiliary = networks, guidance, config, auxiliary
        networks.decay = config.ema_decay
        timesteps = networks.teacher.schedule.num_train_timesteps
        require_grid(config, timesteps)
        self.grid, self.solver_grid = skipping(config.num_ddim_timesteps, timesteps), config.num_ddim_timesteps
        self.edges = phase_edges(config.num_phases, self.grid)
        self.distance = pseudo_huber if config.loss == "pseudo_huber" else l2

    def loss(self, batch: Batch, step: int, random: PerSampleRandom) -> LossAndLogs:
        latents, conditioning = batch.latents, batch.conditioning
        device = latents.device
        noise = to_device(random.normal(latents.shape[1:]), device)
        index = (random.uniform() * len(self.grid)).long()
        t = self.grid[index]
        s = torch.where(index > 0, self.grid[index - 1], 0)
        x_t = self.networks.teacher.schedule.add_noise(latents, noise, t)

        conditioning, scale = self.guidance.sample(conditioning, random)
        t, s = to_device(t, device), to_device(s, device)
        target_network = self.networks.average if self.config.target == "ema" else self.networks.student
        with torch.no_grad():
            guided = self.guidance.predict(self.networks.teacher, x_t, t, conditioning, scale)
            x_s = ddim_step(guided.x_0, guided.eps, s, self.networks.teacher.schedule)  # Luo et al. 2023, eq. 12 to 14
            target = self._consistency(target_network, x_s, s, t, conditioning)
        return self.distance(self._consistency(self.networks.student, x_t, t, t, conditioning), target), {}

    def _consistency(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, phase_t: Tensor, conditioning: Conditioning) -> Tensor:
        """f(x_t, t) onto t = 0, or onto the lower edge of the phase of the timestep `phase_t`."""
        prediction = denoiser(x_t, t, conditioning)
        if self.config.num_phases == 1:
            return consistency_function(prediction, variance_preserving(x_t, t, denoiser.schedule), t)
        edges = to_device(self.edges, phase_t.device)
        edge = edges[torch.searchsorted(edges, phase_t) - 1]
        return variance_preserving(phase_function(prediction, edge, denoiser.schedule), edge, denoiser.schedule)


class ConsistencyRecipe(Recipe):
    """One stage; the consistency student is validated at every step count and with every solver."""

    name = section = "consistency"
    Config = ConsistencyConfig
    summary = "Maps every point of a trajectory to its end: one student for 4, 2 and 1 steps, with the fewest settings"
    supports = Supports(auxiliary_losses=True, feature_matching=True, added_loras=True)

    def check(self, config: RunConfig, teacher: Any = None) -> None:
        settings: ConsistencyConfig = config.consistency
        if max(config.steps) > settings.num_ddim_timesteps:
            raise ValueError(
                f"steps {config.steps}: expects at most consistency.num_ddim_timesteps ({settings.num_ddim_timesteps})"
            )
        if teacher is not None:
            require_grid(settings, teacher.denoiser.schedule.num_train_timesteps)

    def data_needs(self, config: RunConfig) -> Literal["latents", "trajectories"]:
        return needs_trajectories(config)

    def stages(self, context: DenoiserContext) -> Iterator[Stage]:
        config, networks = context.config, context.networks()
        auxiliary = auxiliary_losses(context, networks, config.steps)
        guidance = Guidance(context.unconditional, config.guidance)
        method = ConsistencyDistillation(networks, guidance, config.consistency, auxiliary)
        yield Stage(method, config.trainer, steps=config.steps, solvers=context.solvers)
