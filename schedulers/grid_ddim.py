"""DDIM on any timesteps at all, which the scheduler's config holds."""

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
    """Deterministic DDIM from every timestep of a grid to the next, and from the last to the clean sample.

    Why not a stock scheduler (diffusers 0.42): none has timesteps in its config. Those that take any list of them
    (`set_timesteps(timesteps=...)` of DDPM, DPMSolverMultistep, Euler, Heun, LCM, TCD and others) take it from whoever calls
    the pipeline, each time. `DDIMScheduler` takes none, and steps to `t - num_train_timesteps // N` rather than to the next
    of its timesteps: where N does not divide the timesteps the two are not the same.

    The stock scheduler that makes these very steps, along the trailing grid at any N or along one that the pipeline is called
    with (`timesteps=[999, 310]`), is `DPMSolverMultistepScheduler` with `solver_order=1, timestep_spacing="trailing",
    final_sigmas_type="zero"`. It does not clip x_0 to a range.

    A pipeline folder with it opens where gendistill is installed: `DiffusionPipeline.from_pretrained` imports the class.

    Args:
        grids: timesteps, falling; no two grids of one length. N steps are those of the grid of length N, or trailing's.
        others: as `DDIMScheduler`'s.

    Raises:
        ValueError: a grid does not fall, leaves [0, num_train_timesteps), or two have one length.
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
            steps_offset=1,  # unused here; Stable Diffusion's pipelines call any other value outdated
        )
        for grid in grids:
            ends = [num_train_timesteps, *grid, -1]
            if any(later >= earlier for earlier, later in pairwise(ends)):
                raise ValueError(f"grids: {grid} does not fall within 0 to {num_train_timesteps - 1}")
        if len({len(grid) for grid in grids}) < len(grids):
            raise ValueError(f"grids: lengths {[len(grid) for grid in grids]}, of which two are the same; expects one of each")

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Take the grid of that length from the config, or trailing; or `timesteps` (N,), falling, for this once."""
        if timesteps is None:
            assert num_inference_steps is not None
            of_length = {len(grid): grid for grid in self.config.grids}
            timesteps = of_length.get(num_inference_steps)
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
        """The sample (B, ...) at the next timestep, and x_0 as the network sees it, for one at `timestep` of the grid."""
        prediction = self.predict(model_output, timestep, sample)
        x_s = self.noise_schedule.add_noise(prediction.x_0, prediction.eps, self.time_after(timestep, 1))
        return self.output(x_s, prediction, sample, return_dict)

    @property
    def noise_schedule(self) -> NoiseSchedule:
        return NoiseSchedule.from_alphas_cumprod(self.alphas_cumprod)

    def time_after(self, timestep: Tensor | int, steps: int) -> Tensor:
        """The time () that the grid reaches `steps` steps from `timestep`; -1, clean, past its end."""
        times = [*self.timesteps.tolist(), *[-1] * steps]
        return torch.tensor(times[times.index(int(timestep)) + steps])

    def predict(self, model_output: Tensor, timestep: Tensor | int, sample: Tensor) -> Prediction:
        """x_0, clipped where the config says so, and the network's own eps, as diffusers has them; in float32 at least."""
        dtype, config = torch.promote_types(sample.dtype, torch.float32), self.config
        t = torch.as_tensor(timestep)
        prediction = to_prediction(model_output.to(dtype), sample.to(dtype), t, config.prediction_type, self.noise_schedule)
        if not config.clip_sample:
            return prediction
        return Prediction(prediction.x_0.clamp(-config.clip_sample_range, config.clip_sample_range), prediction.eps)

    @staticmethod
    def output(x_s: Tensor, prediction: Prediction, sample: Tensor, return_dict: bool) -> Any:
        """In the dtype of `sample`, as diffusers' pipelines take it."""
        x_s, x_0 = x_s.to(sample.dtype), prediction.x_0.to(sample.dtype)
        return DDIMSchedulerOutput(prev_sample=x_s, pred_original_sample=x_0) if return_dict else (x_s, x_0)
