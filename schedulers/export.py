"""From how a student wants to be sampled to the stock diffusers scheduler that does it."""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler, LCMScheduler, TCDScheduler

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
SOLVERS = ("ddim", "lcm", "tcd")
TCD_ETA = 0.5


def student_scheduler(
    solver: str,
    teacher_config: dict[str, Any],
    prediction_type: str,
    num_ddim_timesteps: int = 50,
    *,
    bounded: bool = False,
) -> Any:
    """A diffusers scheduler that samples a consistency student in few steps on the teacher's noise schedule.

    - `ddim`: deterministic; from the predicted x_0 and eps straight to the next timestep, and the last step returns x_0
      (exactly where the number of steps divides the timesteps, as 1, 2, 4, 5 and 8 do).
    - `lcm`: fresh noise on the predicted x_0 between steps (Luo et al. 2023, algorithm 3).
    - `tcd`: in between, a share of fresh noise at every step (Zheng et al. 2024): that of `solver_eta`.

    Args:
        teacher_config: the config of the teacher's scheduler; only its noise schedule is taken, and its clipping of x_0.
        num_ddim_timesteps: K of the training grid, from which LCM and TCD choose their timesteps.
        bounded: samples are pictures in [-1, 1], whose x_0 is clipped as the teacher's is; latents never are.
    """
    noise = {key: teacher_config[key] for key in NOISE_SCHEDULE_KEYS if teacher_config.get(key) is not None}
    clipping = {key: teacher_config[key] for key in CLIPPING_KEYS if bounded and key in teacher_config}
    settings = {**noise, "prediction_type": prediction_type, "set_alpha_to_one": True, "clip_sample": False, **clipping}
    if solver == "ddim":
        return DDIMScheduler(**settings, timestep_spacing="trailing")
    if solver == "lcm":
        return LCMScheduler(**settings, original_inference_steps=num_ddim_timesteps)
    if solver == "tcd":
        return TCDScheduler(**settings, original_inference_steps=num_ddim_timesteps)
    raise ValueError(f"solver {solver!r} is not known; takes one of {', '.join(SOLVERS)}")


def solver_eta(solver: str) -> float:
    """The `eta` to call a diffusers pipeline with: how much of a step's noise is fresh (Zheng et al. 2024's gamma), in [0, 1].

    No scheduler's config can hold it: pipelines pass their own argument, 0 by default, which makes TCD deterministic.
    """
    return TCD_ETA if solver == "tcd" else 0.0
