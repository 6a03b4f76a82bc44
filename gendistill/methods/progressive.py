"""Progressive distillation (Salimans & Ho 2022), of guided teachers too (Meng et al. 2023).

A student learns to do in one DDIM step what its teacher does in two, then becomes the teacher of the next stage: 64 steps,
32, ..., 1. What it is fitted to is a prediction, x_0 and eps at once, so that every dialect and weighting reads its own.

Two kinds of stage halve nothing, and come first. Their target is the teacher's own prediction at a time that the next stage
visits, `teacher(x_t, t)`:

- one network for the two branches of guidance (Meng et al. 2023, section 3.1): the teacher is guided, and the student takes
  the scale as an input, or keeps one;
- another dialect. An epsilon student cannot be halved to one step well: x_0 = (x_t - sigma eps) / alpha makes much of a
  small error where alpha is small, and has no meaning where it is 0 (section 4 of the paper, whose own teachers predict x_0,
  v, or both x_0 and eps). No choice of weights turns a network that says eps into one that says v = (eps - sigma x_t) / alpha,
  which would need the network's input added in a proportion that depends on t. So the student is asked for
  (1 - share) eps + share v, and share grows from 0, where it is the teacher, to 1 (`Denoiser.speaking`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from gendistill.data.batches import Batch
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.guidance import Guidance
from gendistill.diffusion.trained_networks import Networks, next_networks
from gendistill.methods.diffusion import DiffusionMethod, first_networks
from gendistill.methods.stage import Stage
from gendistill.run.config import DistillConfig, ProgressiveConfig
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers import ddim_step, invert_ddim_step
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import NoiseSchedule, Prediction, expand_to, trailing

Teacher = Callable[[Tensor, Tensor], Prediction]  # x_t (B, ...), t (B,); its conditions are bound
WEIGHTINGS = ("truncated_snr", "snr_plus_one", "snr", "uniform")


@dataclass(frozen=True)
class Halving:
    """The steps of a stage: row k goes from t[k] to s[k] in one step of the student, in two of its teacher by middle[k].

    All (N,), t falling, t > middle > s; int64 where networks take integers. s is the schedule's `clean` in the last row.
    """

    t: Tensor
    middle: Tensor
    s: Tensor


def sampled_times(num_steps: int, schedule: NoiseSchedule, grid: Sequence[int] = ()) -> Tensor:
    """The (N,) times that a sampler of N steps visits, falling, as diffusers' pipelines have them.

    Of `vp` the trailing grid, int64; of `flow` N - i of N parts of the way, float64, where nothing shifts it.

    Args:
        grid: other timesteps to go by. N less are every so manieth of them, N more lie between them, halfway each time.

    Raises:
        ValueError: of `edm`, whose grid (Karras et al. 2022, eq. 5) has no points between its own, nor below its last; or the
            grid's length is not N after halvings or doublings, or two of its times leave none between.
    """
    if grid:
        return _nested(num_steps, grid, schedule)
    if schedule.kind == "vp":
        return trailing(num_steps, schedule.num_train_timesteps)
    if schedule.kind == "flow":
        return torch.arange(num_steps, 0, -1, dtype=torch.float64) * schedule.num_train_timesteps / num_steps
    raise ValueError(f"a noise schedule of kind {schedule.kind} has no grid that can be halved; takes vp or flow")


def _nested(num_steps: int, grid: Sequence[int], schedule: NoiseSchedule) -> Tensor:
    times = torch.tensor(grid)
    while len(times) < num_steps:
        after = torch.cat([times[1:], torch.tensor([int(schedule.clean)])])
        times = torch.stack([times, (times + after).div(2, rounding_mode="floor").clamp(min=0)], 1).flatten()
    if len(times) % num_steps or num_steps > len(times):
        raise ValueError(f"a grid of {len(grid)} timesteps does not nest in one of {num_steps}; takes one that halves to it")
    times = times[:: len(times) // num_steps]
    if (times[:-1] <= times[1:]).any():
        raise ValueError(f"a grid of {len(grid)} timesteps has not room for {num_steps}; takes fewer steps to start from")
    return times


def halving_times(num_steps: int, schedule: NoiseSchedule, *, stochastic: bool = False, grid: Sequence[int] = ()) -> Halving:
    """Where the student of `num_steps` steps and its teacher of twice as many go.

    The student goes from each point of the N-step grid to the next and from the last to `clean`, as the sampler will. Its
    teacher goes through the other points of the 2 N-step grid, of which the student's are every second one (but for a
    rounding by one timestep at a few N, 48 of 1000 the first).

    N need not divide the timesteps, but then diffusers' `DDIMScheduler` does not land on its own next timestep, as
    `DPMSolverMultistepScheduler(solver_order=1, final_sigmas_type="zero")` does at any N.

    With `stochastic`, steps as long as these start at all 2 N points: those that the sampler of Meng et al. 2023, section
    3.3, makes (`StochasticDDIMScheduler`, in 2 N network calls). The very last of them can only be half as long.

    Args:
        grid: as for `sampled_times`.

    Raises:
        ValueError: a student step leaves no timestep for its teacher's second.
    """
    halves = sampled_times(2 * num_steps, schedule, grid)
    clean = torch.tensor([schedule.clean], dtype=torch.float64).to(halves.dtype)
    if stochastic:
        t, s = halves, torch.cat([halves[2:], clean, clean])
        middle = torch.cat([halves[1:], sampled_times(4 * num_steps, schedule, grid)[-1:]])
    else:
        t, middle = sampled_times(num_steps, schedule, grid), halves[1::2]
        s = torch.cat([t[1:], clean])
    between = (t > middle) & (middle > s)
    if not between.all():
        first = int((~between).long().argmax())
        raise ValueError(
            f"{num_steps} student steps: that from timestep {t[first]} to {s[first]} leaves its teacher none between; takes "
            f"fewer steps of {schedule.num_train_timesteps} timesteps"
        )
    return Halving(t, middle, s)


@torch.no_grad()
def halving_target(teacher: Teacher, x_t: Tensor, t: Tensor, middle: Tensor, s: Tensor, schedule: NoiseSchedule) -> Prediction:
    """What a student must say of x_t (B, ...) at t (B,) to reach in one DDIM step to s what the teacher reaches in two.

    Salimans & Ho 2022, algorithm 2: x_0 = (x_s - (sigma_s / sigma_t) x_t) / (alpha_s - (sigma_s / sigma_t) alpha_t), for any
    alpha and sigma; at s = `clean` this is x_s itself. Exact at zero terminal SNR, where the teacher's x_0 must be finite: no
    epsilon teacher's is.
    """
    first = teacher(x_t, t)
    x_middle = ddim_step(first.x_0, first.eps, middle, schedule)
    second = teacher(x_middle, middle)
    x_s = ddim_step(second.x_0, second.eps, s, schedule)
    return Prediction(*invert_ddim_step(x_t, t, x_s, s, schedule))


def x_0_weight(t: Tensor, weighting: str, schedule: NoiseSchedule) -> Tensor:
    """w(t) of the loss w(t) |x_0 error|^2, float64 of t's shape (Salimans & Ho 2022, section 4, with SNR = alpha^2 / sigma^2).

    - `snr`: SNR, the error of eps. It is 0 where the signal is gone, where a student of one step has its only time.
    - `truncated_snr`: max(SNR, 1), the larger of the errors of x_0 and eps; the paper's choice beside the next.
    - `snr_plus_one`: SNR + 1, under `vp` the error of v.
    - `uniform`: 1, the error of x_0.

    It is inf at `clean`. `prediction_loss` computes the same without the SNR.
    """
    snr = (schedule.alpha(t) / schedule.sigma(t)) ** 2
    weights = {"snr": snr, "truncated_snr": snr.clamp(min=1), "snr_plus_one": snr + 1, "uniform": torch.ones_like(snr)}
    return weights[_known(weighting)]


def prediction_loss(prediction: Prediction, target: Prediction, weighting: str = "truncated_snr") -> Tensor:
    """The mean, over the batch and its elements, of x_0's squared error times `x_0_weight`: a scalar.

    Two predictions at one x_t have alpha dx_0 = -sigma deps, so SNR dx_0^2 is deps^2. No SNR is computed, so none is infinite
    and none is 0.
    """
    x_0, eps = (prediction.x_0 - target.x_0).square(), (prediction.eps - target.eps).square()
    if _known(weighting) == "snr":
        return eps.mean()
    if weighting == "truncated_snr":
        return torch.maximum(x_0, eps).mean()
    return (x_0 + eps).mean() if weighting == "snr_plus_one" else x_0.mean()


def _known(weighting: str) -> str:
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting {weighting!r} is not known; takes one of {', '.join(WEIGHTINGS)}")
    return weighting


class ProgressiveDistillation(DiffusionMethod):
    """What all stages share: a time of the stage's grid for each sample, and a prediction to be fitted there.

    Args:
        times: (N,) falling, the times that the student is trained at: those that it is sampled at. At the first of them it
            sees noise alone, as a sampler begins; at the others noisy data.
    """

    name = "progressive"

    def __init__(self, networks: Networks, guidance: Guidance, config: ProgressiveConfig, times: Tensor) -> None:
        self.networks, self.guidance, self.config, self.times = networks, guidance, config, times

    def loss_of(self, batch: Batch, random: PerSampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        latents = batch.latents
        noise = random.normal(latents.shape[1:]).to(latents.device)
        row = (random.uniform() * len(self.times)).long()
        t = self.times[row].to(latents.device)
        begins = expand_to(row == 0, latents).bool()
        x_t = torch.where(begins, noise, self.networks.teacher.schedule.add_noise(latents, noise, t))
        conditioning, scale = self.guidance.draw(batch.conditioning, random)
        target = self.target(x_t, row, conditioning, scale)
        return self.loss(x_t, t, conditioning, target, random.step), {}

    def target(self, x_t: Tensor, row: Tensor, conditioning: Conditioning, scale: Tensor | float) -> Prediction:
        """What the student must say of x_t (B, ...) at `times[row]`."""
        raise NotImplementedError

    def loss(self, x_t: Tensor, t: Tensor, conditioning: Conditioning, target: Prediction, step: int) -> Tensor:
        """How far from it the student is, in step `step` of its training: a scalar."""
        return prediction_loss(self.networks.student(x_t, t, conditioning), target, self.config.weighting)

    def after_step(self, step: int) -> None:
        self.networks.update_average(min(self.config.ema_decay, (1 + step) / (10 + step)))


class Imitation(ProgressiveDistillation):
    """The stage that halves nothing: the guided teacher's own prediction, in one call and in the student's dialect.

    A student that changes from eps to v does so over `dialect_steps` steps: what its output is fitted to is
    `(1 - share) eps + share v` (B, ...), and share grows from 0 to 1.
    """

    @torch.no_grad()
    def target(self, x_t: Tensor, row: Tensor, conditioning: Conditioning, scale: Tensor | float) -> Prediction:
        return self.guidance.predict(self.networks.teacher, x_t, self.times[row].to(x_t.device), conditioning, scale)

    def loss(self, x_t: Tensor, t: Tensor, conditioning: Conditioning, target: Prediction, step: int) -> Tensor:
        student = self.networks.student
        if step >= self.config.dialect_steps or student.prediction_type in ("sample", self.networks.teacher.prediction_type):
            return super().loss(x_t, t, conditioning, target, step)
        student = student.speaking(student.prediction_type, step / self.config.dialect_steps)
        return mse_loss(student.output_of(student(x_t, t, conditioning), t), student.output_of(target, t))


class StepHalving(ProgressiveDistillation):
    """One step of the student for two of its teacher, which is called as the student is."""

    def __init__(self, networks: Networks, guidance: Guidance, config: ProgressiveConfig, num_steps: int) -> None:
        stochastic = config.sampler == "stochastic"
        self.halving = halving_times(num_steps, networks.teacher.schedule, stochastic=stochastic, grid=config.grid or ())
        super().__init__(networks, guidance, config, self.halving.t)

    def target(self, x_t: Tensor, row: Tensor, conditioning: Conditioning, scale: Tensor | float) -> Prediction:
        teacher = self.networks.teacher
        t, middle, s = (times[row].to(x_t.device) for times in (self.halving.t, self.halving.middle, self.halving.s))
        return halving_target(lambda x, at: teacher(x, at, conditioning), x_t, t, middle, s, teacher.schedule)


def progressive_stages(
    config: DistillConfig, teacher: Denoiser, unconditional: Conditioning, start: Any = None
) -> Iterator[Stage]:
    """The imitation of a guided teacher or in another dialect, where there is any, then one stage a halving.

    Each stage's teacher is the average that the one before has made; the student starts as it. Stages are named by the
    network calls of their students, which the stochastic sampler makes two of a step.
    """
    settings, guidance = config.progressive, Guidance(unconditional, config.guidance)
    embedded = config.guidance.mode == "embedded"
    dialect = settings.prediction_type if teacher.prediction_type == "epsilon" else teacher.prediction_type
    networks = first_networks(config, teacher, start)

    def stage(method: ProgressiveDistillation, name: str, steps: int, solver: str, student: str | None) -> Stage:
        grids = [sampled_times(steps, teacher.schedule, settings.grid).tolist()] if settings.grid else []
        return Stage(method, [steps], [solver], student, config.trainer_of(name), f"stages/{name}", grids)

    guided = embedded or (config.guidance.mode == "baked" and config.guidance.scale > 1)
    if guided or dialect != teacher.prediction_type:
        networks.student, networks.average = networks.student.speaking(dialect), networks.average.speaking(dialect)
        times = sampled_times(settings.start_steps * settings.calls_a_step, teacher.schedule, settings.grid or ())
        imitation = Imitation(networks, guidance, settings, times)
        yield stage(imitation, "imitation", settings.start_steps, "ddim", None)
        networks = next_networks(networks)
    calls = config.halved_to()
    for number, count in enumerate(calls):
        networks = next_networks(networks) if number else networks
        method = StepHalving(networks, guidance, settings, count // settings.calls_a_step)
        yield stage(method, str(count), count, settings.sampler, f"student-{count}" if count in config.steps else None)
