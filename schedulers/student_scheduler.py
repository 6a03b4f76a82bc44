"""The scheduler for a student's solver, from diffusers if possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    TCDScheduler,
)

from gendistill.schedulers.grid_ddim import GridDDIMScheduler
from gendistill.schedulers.noise import NoiseSchedule, edm_sigmas
from gendistill.schedulers.stochastic_ddim import StochasticDDIMScheduler
from gendistill.schedulers.timesteps import nested, skipping, trailing

NOISE_SCHEDULE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
EDM_KEYS = ("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "num_train_timesteps", "prediction_type", "rho")
EXPONENTIAL_RHO = 1e4  # noise levels within 0.2 % of exponential ones, and no loss of digits in float32
CLIPPING_KEYS = ("clip_sample", "clip_sample_range")
READ_BY_OTHERS = {
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
    "steps_offset": 1,  # unused on trailing timesteps; Stable Diffusion's pipelines call any other value outdated
    "skip_prk_steps": True,
}
SOLVERS = ("ddim", "lcm", "tcd", "stochastic")
SOLVERS_OF = {"vp": SOLVERS, "flow": ("ddim", "lcm"), "edm": ("ddim",)}  # by the kind of the noise schedule
TCD_ETA = 0.5


def usable_solvers(solvers: Sequence[str], kind: str) -> list[str]:
    """Those of `solvers` that a kind of noise schedule can be sampled with; `lcm` instead of `tcd` for flow matching."""
    known = SOLVERS_OF[kind]
    instead = [solver if solver in known or "lcm" not in known else "lcm" for solver in solvers]
    return list(dict.fromkeys(solver for solver in instead if solver in known)) or ["ddim"]


def flow_scheduler(solver: str, schedule: NoiseSchedule, passes_sigmas: bool) -> Any:
    """A scheduler of flow matching with the fixed shift of a noise schedule, whose N steps are the trailing grid for any N.

    - `ddim`: Euler's method. `FlowMatchEulerDiscreteScheduler`, where the pipeline passes the trailing sigmas; otherwise its
      own sigmas would end close to 0, and `DPMSolverMultistepScheduler` of first order, which is the same method, has the
      trailing ones.
    - `dpm-solver++`: `DPMSolverMultistepScheduler` of second order.
    - `lcm`: fresh noise on the predicted x_0 between steps. `FlowMatchLCMScheduler`, where the pipeline passes the sigmas;
      otherwise `DPMSolverMultistepScheduler` as the SDE solver of first order, whose step samples the posterior of x_s given
      x_t and x_0 (Ho et al. 2020, eq. 7), so that a part e^-h of eps is kept, where h is the step of ln(alpha / sigma).
    """
    common = {"num_train_timesteps": schedule.num_train_timesteps}
    if passes_sigmas and solver in ("ddim", "lcm"):
        kind: Any = FlowMatchEulerDiscreteScheduler if solver == "ddim" else FlowMatchLCMScheduler
        return kind(**common, shift=schedule.shift)
    from diffusers import DPMSolverMultistepScheduler  # takes a second where scipy is installed, which it imports

    return DPMSolverMultistepScheduler(
        **common,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=schedule.shift,
        algorithm_type="sde-dpmsolver++" if solver == "lcm" else "dpmsolver++",
        solver_order=2 if solver == "dpm-solver++" else 1,
        final_sigmas_type="zero",
    )


def edm_scheduler(solver: str, config: Mapping[str, Any], steps: int | None = None) -> Any:
    """A scheduler of EDM with the noise levels of another one: `ddim`, which is Euler's method, or `dpm-solver++`.

    Exponential noise levels are those of Karras et al. with a large rho, as diffusers would begin a single step of exponential
    ones at the lowest level.

    Args:
        config: of the other scheduler.
        steps: count of steps that are sampled at the timesteps of the trailing grid, the lowest of which is the last step of
            all counts. By default the last step is at the smallest noise level of all, and so a call without effect.
    """
    if steps is not None and steps > 1:
        lowest = int(trailing(steps, config["num_train_timesteps"])[-1])
        config = {**config, "sigma_min": float(edm_sigmas(config)[lowest])}
    if config["sigma_schedule"] == "exponential":
        config = {**config, "sigma_schedule": "karras", "rho": EXPONENTIAL_RHO}
    kind: Any = EDMEulerScheduler if solver == "ddim" else EDMDPMSolverMultistepScheduler
    settings = {name: config[name] for name in EDM_KEYS}
    return kind(**settings, final_sigmas_type="zero")


def student_scheduler(
    solver: str,
    teacher_config: dict[str, Any],
    prediction_type: str,
    num_ddim_timesteps: int = 50,
    *,
    trained_on_grid: bool = False,
    bounded: bool = False,
    steps: Sequence[int] = (),
    grids: Sequence[list[int]] = (),
) -> Any:
    """A scheduler that samples a student in few steps with the teacher's variance-preserving noise schedule.

    - `ddim`: deterministic, from the predicted x_0 and eps to the next timestep; the last step returns x_0. It is
      `DDIMScheduler` if its steps end on its trailing grid at all of `steps`, as at 1, 2, 4, 5 and 8 of 1000; otherwise
      `DPMSolverMultistepScheduler` of first order, which is DDIM; and our `GridDDIMScheduler` for `grids`, or if x_0 is
      clipped at other step counts. A student that was trained on a grid is sampled on it at all of `steps`: where the trailing
      grid has other timesteps, by `TCDScheduler`, which is DDIM with the `eta` of 0 that pipelines pass.
    - `lcm`: fresh noise on the predicted x_0 between steps (Luo et al. 2023, algorithm 3).
    - `tcd`: between the two, a fraction `solver_eta` of fresh noise in each step (Zheng et al. 2024).
    - `stochastic`: two steps forward and one back (Meng et al. 2023), our `StochasticDDIMScheduler`.

    Args:
        teacher_config: the config of the teacher's scheduler; only its noise schedule and its clipping of x_0 are used.
        num_ddim_timesteps: K of the training grid, from which LCM and TCD choose their timesteps; divides the timesteps.
        trained_on_grid: whether the student knows the timesteps of that grid alone.
        bounded: samples are images in [-1, 1], and x_0 is clipped as in the teacher; latents are never clipped.
        steps: step counts at which the scheduler must be exact.
        grids: descending timesteps, each in place of the trailing grid of its length; for `ddim` and `stochastic`.
    """
    noise = {key: teacher_config[key] for key in NOISE_SCHEDULE_KEYS if teacher_config.get(key) is not None}
    clipping = {key: teacher_config[key] for key in CLIPPING_KEYS if bounded and key in teacher_config}
    read_by_all = {**noise, "prediction_type": prediction_type, "clip_sample": False, **clipping}
    if solver == "stochastic":
        return StochasticDDIMScheduler(**read_by_all, grids=list(grids))
    # `from_config` also keeps the fields that a class does not read, for the schedulers that users make from its config
    settings = {**read_by_all, **READ_BY_OTHERS}
    if solver == "ddim":
        timesteps = settings.get("num_train_timesteps", 1000)  # diffusers' default
        trained = skipping(num_ddim_timesteps, timesteps)
        if trained_on_grid and not all(torch.isin(trailing(count, timesteps), trained).all() for count in steps):
            if bounded:  # its pipelines clip x_0, and pass no eta
                return GridDDIMScheduler(**read_by_all, grids=[nested(count, trained).tolist() for count in steps])
            return TCDScheduler.from_config({**settings, "original_inference_steps": num_ddim_timesteps})
        on_grid = all(_stays_on_grid(count, timesteps) for count in steps)
        if grids or (settings["clip_sample"] and not on_grid):
            return GridDDIMScheduler(**read_by_all, grids=list(grids))
        if on_grid:
            return DDIMScheduler.from_config(settings)
        from diffusers import DPMSolverMultistepScheduler  # takes a second where scipy is installed, which it imports

        return DPMSolverMultistepScheduler.from_config({**settings, "solver_order": 1, "final_sigmas_type": "zero"})
    if solver in ("lcm", "tcd"):
        few_step: Any = LCMScheduler if solver == "lcm" else TCDScheduler
        return few_step.from_config({**settings, "original_inference_steps": num_ddim_timesteps})
    raise ValueError(f"solver {solver!r} is not known; expects one of {', '.join(SOLVERS)}")


def _stays_on_grid(num_inference_steps: int, num_train_timesteps: int) -> bool:
    """Whether `DDIMScheduler`, with steps of num_train_timesteps // N, goes from each timestep of its grid to the next."""
    grid, stride = trailing(num_inference_steps, num_train_timesteps), num_train_timesteps // num_inference_steps
    return bool((grid[:-1] - stride == grid[1:]).all()) and int(grid[-1]) < stride


def solver_eta(solver: str) -> float:
    """The `eta` for a diffusers pipeline: the fraction of fresh noise in a step, in [0, 1] (gamma of Zheng et al. 2024).

    It cannot be in a scheduler's config, as pipelines pass their own argument, by default 0, which makes TCD deterministic.
    """
    return TCD_ETA if solver == "tcd" else 0.0


def fresh_noise(solver: str) -> float:
    """The fraction of fresh noise in a step of `ddim`, `tcd` or `lcm`: 0 is deterministic, 1 adds noise to x_0 itself."""
    return 1.0 if solver == "lcm" else solver_eta(solver)
