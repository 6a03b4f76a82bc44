"""From how a student wants to be sampled to the stock diffusers scheduler that does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import DDIMScheduler, LCMScheduler, TCDScheduler

from gendistill.schedulers.grid_ddim import GridDDIMScheduler
from gendistill.schedulers.stochastic_ddim import StochasticDDIMScheduler
from gendistill.schedulers.timesteps import trailing

NOISE_SCHEDULE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
CLIPPING_KEYS = ("clip_sample", "clip_sample_range")
SOLVERS = ("ddim", "lcm", "tcd", "stochastic")
TCD_ETA = 0.5


def student_scheduler(
    solver: str,
    teacher_config: dict[str, Any],
    prediction_type: str,
    num_ddim_timesteps: int = 50,
    *,
    bounded: bool = False,
    steps: Sequence[int] = (),
    grids: Sequence[list[int]] = (),
) -> Any:
    """A scheduler that samples a student in few steps on the teacher's noise schedule: diffusers' own wherever one can.

    - `ddim`: deterministic; from the predicted x_0 and eps straight to the next timestep, and the last step returns x_0.
      `DDIMScheduler` where it lands on its own trailing grid at all of `steps`, as at 1, 2, 4, 5 and 8 of 1000;
      `DPMSolverMultistepScheduler` of first order, which is DDIM, at others; `GridDDIMScheduler` of ours for `grids`, and
      where x_0 is clipped at others.
    - `lcm`: fresh noise on the predicted x_0 between steps (Luo et al. 2023, algorithm 3).
    - `tcd`: in between, a share of fresh noise at every step (Zheng et al. 2024): that of `solver_eta`.
    - `stochastic`: two steps forward and one back (Meng et al. 2023); ours, as no stock scheduler does it.

    Args:
        teacher_config: the config of the teacher's scheduler; only its noise schedule is taken, and its clipping of x_0.
        num_ddim_timesteps: K of the training grid, from which LCM and TCD choose their timesteps.
        bounded: samples are pictures in [-1, 1], whose x_0 is clipped as the teacher's is; latents never are.
        steps: step counts that it has to be exact at.
        grids: timesteps to go by, falling, each instead of the trailing ones of its length; for `ddim` and `stochastic`.
    """
    noise = {key: teacher_config[key] for key in NOISE_SCHEDULE_KEYS if teacher_config.get(key) is not None}
    clipping = {key: teacher_config[key] for key in CLIPPING_KEYS if bounded and key in teacher_config}
    settings = {**noise, "prediction_type": prediction_type, "clip_sample": False, **clipping}
    if solver == "stochastic":
        return StochasticDDIMScheduler(**settings, grids=list(grids))
    if solver == "ddim":
        if grids:
            return GridDDIMScheduler(**settings, grids=list(grids))
        stock: Any = DDIMScheduler(**settings, set_alpha_to_one=True, timestep_spacing="trailing")
        if all(_lands_on_its_grid(count, stock.config.num_train_timesteps) for count in steps):
            return stock
        if settings["clip_sample"]:
            return GridDDIMScheduler(**settings)
        del settings["clip_sample"]
        from diffusers import DPMSolverMultistepScheduler  # which imports scipy.stats where that is installed: a second

        return DPMSolverMultistepScheduler(**settings, solver_order=1, timestep_spacing="trailing", final_sigmas_type="zero")
    if solver == "lcm":
        return LCMScheduler(**settings, set_alpha_to_one=True, original_inference_steps=num_ddim_timesteps)
    if solver == "tcd":
        return TCDScheduler(**settings, set_alpha_to_one=True, original_inference_steps=num_ddim_timesteps)
    raise ValueError(f"solver {solver!r} is not known; takes one of {', '.join(SOLVERS)}")


def _lands_on_its_grid(num_inference_steps: int, num_train_timesteps: int) -> bool:
    """Whether `DDIMScheduler`, which steps by num_train_timesteps // N, goes from each timestep of its grid to the next."""
    grid, stride = trailing(num_inference_steps, num_train_timesteps), num_train_timesteps // num_inference_steps
    return bool((grid[:-1] - stride == grid[1:]).all()) and int(grid[-1]) < stride


def solver_eta(solver: str) -> float:
    """The `eta` to call a diffusers pipeline with: how much of a step's noise is fresh (Zheng et al. 2024's gamma), in [0, 1].

    No scheduler's config can hold it: pipelines pass their own argument, 0 by default, which makes TCD deterministic.
    """
    return TCD_ETA if solver == "tcd" else 0.0
