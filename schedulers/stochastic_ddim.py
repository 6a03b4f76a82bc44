"""The stochastic sampler of step-distilled students."""

from __future__ import annotations

from typing import Any

from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

from gendistill.schedulers.grid_ddim import GridDDIMScheduler


class StochasticDDIMScheduler(GridDDIMScheduler, SchedulerMixin):  # names SchedulerMixin as GridDDIMScheduler does
    """A deterministic step over two grid steps, then noise for one grid step back (Meng et al. 2023, section 3.3).

    DDIM goes from t_i to t_{i+2}, and the forward process back to t_{i+1}. N steps need as many network calls as N steps of
    DDIM, at the same timesteps, but the steps of the network are as long as those of N / 2 steps. So this sampler is for
    students of N / 2 steps that were trained at all N timesteps (`halving_times(N / 2, ..., stochastic=True)`). The last two
    steps go to the clean end: the result from t_{N-1} is noised back to t_N, and the step from t_N, of half the length, is
    deterministic.

    No stock scheduler does this: `eta` of DDIM and TCD replaces noise within a step, without a longer step. Arguments,
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
        """The sample (B, ...) at the next timestep of the grid, and the predicted x_0, for `sample` at `timestep`."""
        schedule = self.noise_schedule
        prediction = self.predict(model_output, timestep, sample)
        next_, second_next = self.time_after(timestep, 1), self.time_after(timestep, 2)
        x = schedule.add_noise(prediction.x_0, prediction.eps, second_next)
        if next_ != second_next:
            noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = schedule.perturb(x, noise, second_next, next_)
        return self.output(x, prediction, sample, return_dict)
