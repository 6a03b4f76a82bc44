"""Consistency distillation (Song et al. 2023) of guided latent diffusion (Luo et al. 2023, LCM).

A consistency function f(x_t, t) maps every point of a trajectory of the probability-flow ODE to the trajectory's end.
The teacher makes one step of that trajectory, from x_t to x_s, and the student learns that both ends map to the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gendistill.config import ConsistencyConfig
from gendistill.data.batches import Batch
from gendistill.data.order import PerSampleRandom
from gendistill.diffusion.conditioning import Conditioning
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.networks import Networks
from gendistill.diffusion.prediction import Prediction
from gendistill.losses.pixel import l2, pseudo_huber
from gendistill.methods.base import Method, Update
from gendistill.samplers import ddim_step
from gendistill.schedulers import NoiseSchedule, expand_to, skipping


def boundary_scalings(t: Tensor, sigma_data: float = 0.5, timestep_scaling: float = 10.0) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of f = c_skip x_t + c_out x_0, with f(x, 0) = x (Luo et al. 2023, section 4.1 and appendix C).

    t (B,) in timestep units; `timestep_scaling` makes the network's x_0 count for all but the very first timesteps.
    """
    scaled = t.double() * timestep_scaling
    c_skip = sigma_data**2 / (scaled**2 + sigma_data**2)
    c_out = scaled / (scaled**2 + sigma_data**2).sqrt()
    return c_skip, c_out


def consistency_function(prediction: Prediction, x_t: Tensor, t: Tensor) -> Tensor:
    """f(x_t, t): the end of the trajectory through x_t as the denoiser sees it (Song et al. 2023, eq. 5)."""
    c_skip, c_out = boundary_scalings(t)
    return expand_to(c_skip, x_t) * x_t + expand_to(c_out, x_t) * prediction.x_0


def phase_function(prediction: Prediction, edge: Tensor, schedule: NoiseSchedule) -> Tensor:
    """f(x_t, t) onto the lower edge of t's phase, not onto t = 0 (Heek et al. 2024, section 3; Wang et al. 2024, PCM).

    One DDIM step; at t = edge it is the identity, whatever the denoiser says, so no scalings are needed.
    """
    return ddim_step(prediction.x_0, prediction.eps, edge, schedule)


def phase_edges(num_phases: int, grid: Tensor) -> Tensor:
    """(P,) rising, from 0: the lower edges of P equal phases of a solver grid (K,), each a point of the grid."""
    starts = [round(len(grid) * phase / num_phases) for phase in range(num_phases)]
    return torch.stack([grid[start - 1] if start else torch.zeros_like(grid[0]) for start in starts])


def solver_step(
    teacher: Denoiser,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    conditioning: Conditioning,
    unconditional: Conditioning,
    guidance_scale: Tensor | float,
) -> Tensor:
    """x_s on the guided teacher's trajectory through x_t: one skipping DDIM step (Luo et al. 2023, eq. 12 to 14)."""
    prediction = teacher.guided(x_t, t, conditioning, unconditional, guidance_scale)
    return ddim_step(prediction.x_0, prediction.eps, s, teacher.schedule)


class ConsistencyDistillation(Method):
    """The three networks, wired by the functions above.

    Args:
        unconditional: the empty prompt, a batch of 1.

    Raises:
        ValueError: the solver grid is finer than the teacher's timesteps.
    """

    name = "consistency"

    def __init__(self, networks: Networks, unconditional: Conditioning, config: ConsistencyConfig) -> None:
        self.networks, self.unconditional, self.config = networks, unconditional, config
        timesteps = networks.teacher.schedule.num_train_timesteps
        if config.num_ddim_timesteps > timesteps:
            raise ValueError(
                f"consistency.num_ddim_timesteps {config.num_ddim_timesteps}: takes at most the teacher's {timesteps} timesteps"
            )
        self.grid = skipping(config.num_ddim_timesteps, timesteps)
        self.edges = phase_edges(config.num_phases, self.grid)
        self.distance = pseudo_huber if config.loss == "pseudo_huber" else l2

    def updates(self, batch: Batch, random: PerSampleRandom) -> Iterator[Update]:
        latents, conditioning = batch.latents, batch.conditioning
        device = latents.device
        noise = random.normal(latents.shape[1:]).to(device)
        index = (random.uniform() * len(self.grid)).long()
        t = self.grid[index]
        s = torch.where(index > 0, self.grid[index - 1], 0)
        x_t = self.networks.teacher.schedule.add_noise(latents, noise, t)

        guidance_scale = self._guidance(random)
        if self.config.guidance == "embedded":
            assert isinstance(guidance_scale, Tensor)
            conditioning = conditioning.with_guidance(guidance_scale.to(device))
        elif self.config.guidance == "cfg":
            kept = (random.uniform() >= self.config.prompt_dropout).to(device)
            conditioning = conditioning.where(kept, self.unconditional)

        t, s = t.to(device), s.to(device)
        target_network = self.networks.average if self.config.target == "ema" else self.networks.student
        with torch.no_grad():
            x_s = solver_step(
                self.networks.teacher,
                x_t,
                t,
                s,
                conditioning.with_guidance(None),
                self.unconditional,
                guidance_scale,
            )
            target = self._map(target_network, x_s, s, t, conditioning)
        loss = self.distance(self._map(self.networks.student, x_t, t, t, conditioning), target)
        yield Update(loss, logs={"loss": loss.detach()})

    def after_step(self, step: int) -> None:
        """The average follows the student; its decay warms up, so that it forgets the teacher."""
        self.networks.update_average(min(self.config.ema_decay, (1 + step) / (10 + step)))

    def _guidance(self, random: PerSampleRandom) -> Tensor | float:
        config = self.config
        if config.guidance == "embedded":
            low, high = config.guidance_range
            return low + (high - low) * random.uniform()
        return config.guidance_scale if config.guidance == "baked" else 1.0

    def _map(self, denoiser: Denoiser, x: Tensor, at: Tensor, phase_of: Tensor, conditioning: Conditioning) -> Tensor:
        """f(x, at) within the phase that holds the time `phase_of`."""
        prediction = denoiser(x, at, conditioning)
        if self.config.num_phases == 1:
            return consistency_function(prediction, x, at)
        edges = self.edges.to(phase_of.device)
        edge = edges[torch.searchsorted(edges, phase_of) - 1]
        return phase_function(prediction, edge, denoiser.schedule)
