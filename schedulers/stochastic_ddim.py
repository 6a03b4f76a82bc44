"""The stochastic sampler of step-distilled students."""

from __future__ import annotations

from typing import Any

from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

from gendistill.schedulers.grid_ddim import GridDDIMScheduler


class StochasticDDIMScheduler(GridDDIMScheduler, SchedulerMixin):  # named for the same reason as there
    """One deterministic step of two grid steps forward, then noise for one grid step back (Meng et al. 2023, section 3.3).

    From t_i to t_{i+2} by DDIM and back to t_{i+1} by the forward process: N steps of it make as many network calls as N
    steps of DDIM, at the same timesteps, but each step that a network makes is as long as those of N / 2 steps. So it is for
    students of N / 2 steps, trained at all N timesteps (`halving_times(N / 2, ..., stochastic=True)`). The two last steps end
    clean: that from t_{N-1} is noised back to t_N, that from t_N, of half the length, is the deterministic end.

    No stock scheduler does this: DDIM's `eta` and TCD's share the noise out within a step, without a longer one. Arguments,
    config and saving are `GridDDIMScheduler`'s. Noise comes from `step`'s `generator`, which diffusers' pipelines pass on.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | int,
        sample: Tensor,
        generator: Generator | list[Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample (B, ...) at the next timestep, and x_0 as the network sees it, for one at `timestep` of the grid."""
        schedule = self.noise_schedule
        prediction = self.predict(model_output, timestep, sample)
        next_, beyond = self.time_after(timestep, 1), self.time_after(timestep, 2)
        x = schedule.add_noise(prediction.x_0, prediction.eps, beyond)
        if next_ != beyond:
            noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = schedule.perturb(x, noise, beyond, next_)
        return self.output(x, prediction, sample, return_dict)
