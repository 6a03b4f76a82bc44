"""DDIM on arbitrary timesteps from the scheduler's config."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Generator, Tensor

from gendistill.schedulers.noise import NoiseSchedule
from gendistill.schedulers.prediction import Prediction, to_prediction
from gendistill.schedulers.timesteps import trailing


class GridDDIMScheduler(DDIMScheduler, SchedulerMixin):  # diffusers opens a class whose module names SchedulerMixin
    """Deterministic DDIM from each timestep of a grid to the next, and from the last to the clean sample.

    No stock scheduler (diffusers 0.42) has timesteps in its config. Those that support a list of timesteps
    (`set_timesteps(timesteps=...)` of DDPM, DPMSolverMultistep, Euler, Heun, LCM, TCD and others) need it in each call of the
    pipeline. `DDIMScheduler` does not support it, and steps to `t - num_train_timesteps // N` instead of its next timestep,
    which differs if N does not divide the number of timesteps.

    The stock scheduler with the same steps, on the trailing grid at any N or on the timesteps of the pipeline's call
    (`timesteps=[999, 310]`), is `DPMSolverMultistepScheduler` with `solver_order=1, timestep_spacing="trailing",
    final_sigmas_type="zero"`. It does not clip x_0 to a range.

    A pipeline folder with this scheduler needs gendistill: `DiffusionPipeline.from_pretrained` imports the class.

    Args:
        grids: descending timesteps, with a different length for each grid. N steps use the grid of length N, or else the
            trailing grid.
        others: see `DDIMScheduler`.

    Raises:
        ValueError: a grid is not descending or leaves [0, num_train_timesteps), or two grids have the same length.
    """

    config: Any
    alphas_cumprod: Tensor

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        clip_sample: bool = True,
        clip_sample_range: float = 1.0,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        grids: tuple[list[int], ...] | list[list[int]] = (),
    ) -> None:
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            clip_sample=clip_sample,
            clip_sample_range=clip_sample_range,
            prediction_type=prediction_type,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
            # unused here: read by schedulers that are made from this config, and by Stable Diffusion's pipelines
            steps_offset=1,
            set_alpha_to_one=True,
            timestep_spacing="trailing",
        )
        for grid in grids:
            ends = [num_train_timesteps, *grid, -1]
            if any(later >= earlier for earlier, later in pairwise(ends)):
                raise ValueError(f"grids: {grid}; expects descending timesteps from 0 to {num_train_timesteps - 1}")
        if len({len(grid) for grid in grids}) < len(grids):
            raise ValueError(f"grids: lengths {[len(grid) for grid in grids]}; expects one grid of each length")

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Use the config's grid of that length, or else the trailing grid; or the given descending `timesteps` (N,)."""
        if timesteps is None:
            assert num_inference_steps is not None
            grids_by_length = {len(grid): grid for grid in self.config.grids}
            timesteps = grids_by_length.get(num_inference_steps)
            timesteps = timesteps or trailing(num_inference_steps, self.config.num_train_timesteps).tolist()
        self.num_inference_steps = len(timesteps)
        self.timesteps = torch.tensor(timesteps, device=device)

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | int,
        sample: Tensor,
        generator: Generator | list[Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample (B, ...) at the next timestep of the grid, and the predicted x_0, for `sample` at `timestep`."""
        prediction = self.predict(model_output, timestep, sample)
        x_s = self.noise_schedule.add_noise(prediction.x_0, prediction.eps, self.time_after(timestep, 1))
        return self.output(x_s, prediction, sample, return_dict)

    @property
    def noise_schedule(self) -> NoiseSchedule:
        return NoiseSchedule.from_alphas_cumprod(self.alphas_cumprod)

    def time_after(self, timestep: Tensor | int, steps: int) -> Tensor:
        """The time () of the grid `steps` steps after `timestep`; -1 (clean) past the end of the grid."""
        times = [*self.timesteps.tolist(), *[-1] * steps]
        return torch.tensor(times[times.index(int(timestep)) + steps])

    def predict(self, model_output: Tensor, timestep: Tensor | int, sample: Tensor) -> Prediction:
        """The predicted x_0, clipped if the config has `clip_sample`, and eps, not recomputed from it; in float32 at least."""
        dtype, config = torch.promote_types(sample.dtype, torch.float32), self.config
        t = torch.as_tensor(timestep)
        prediction = to_prediction(model_output.to(dtype), sample.to(dtype), t, config.prediction_type, self.noise_schedule)
        if not config.clip_sample:
            return prediction
        return Prediction(prediction.x_0.clamp(-config.clip_sample_range, config.clip_sample_range), prediction.eps)

    @staticmethod
    def output(x_s: Tensor, prediction: Prediction, sample: Tensor, return_dict: bool) -> Any:
        """The result of a step in the dtype of `sample`, which diffusers' pipelines expect."""
        x_s, x_0 = x_s.to(sample.dtype), prediction.x_0.to(sample.dtype)
        return DDIMSchedulerOutput(prev_sample=x_s, pred_original_sample=x_0) if return_dict else (x_s, x_0)
