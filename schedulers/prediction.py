"""What a denoiser says about x_t = alpha x_0 + sigma eps, whichever of its four dialects the network speaks.

epsilon       eps
sample        x_0
v_prediction  v = alpha eps - sigma x_0          (Salimans & Ho 2022, appendix D)
flow          u = eps - x_0                      (rectified flow: d x_t / d sigma for alpha = 1 - sigma)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gendistill.schedulers.noise import NoiseSchedule, expand_to

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow")


@dataclass(frozen=True)
class Prediction:
    """The clean signal and the noise that a denoiser sees in x_t; both (B, ...), and x_t = alpha x_0 + sigma eps."""

    x_0: Tensor
    eps: Tensor

    def __getitem__(self, index: slice | Tensor) -> Prediction:
        return Prediction(self.x_0[index], self.eps[index])

    def guided(self, unconditional: Prediction, guidance_scale: Tensor | float) -> Prediction:
        """Classifier-free guidance, scale 1 being none (Ho & Salimans 2022, eq. 6 with their w = scale - 1)."""
        scale = expand_to(torch.as_tensor(guidance_scale), self.x_0)
        return Prediction(torch.lerp(unconditional.x_0, self.x_0, scale), torch.lerp(unconditional.eps, self.eps, scale))


def to_prediction(
    output: Tensor, x_t: Tensor, t: Tensor, prediction_type: str, schedule: NoiseSchedule, fraction: float = 1.0
) -> Prediction:
    """A network's raw output (B, ...) at x_t (B, ...), t (B,) as x_0 and eps.

    At zero terminal SNR (alpha = 0) an `epsilon` network says nothing of x_0: the division gives infinities, as the
    mathematics has it. Such teachers predict v or x_0.

    Args:
        share: of a network on its way from noise to v or flow, how much of its output is that; the rest is eps.

    Raises:
        ValueError: `sample` with a share: on the way from eps to x_0 there is an output that says nothing, where
            sigma share = alpha (1 - share).
    """
    alpha, sigma = expand_to(schedule.alpha(t), x_t), expand_to(schedule.sigma(t), x_t)
    _check_fraction(prediction_type, fraction)
    if prediction_type == "epsilon":
        return Prediction((x_t - sigma * output) / alpha, output)
    if prediction_type == "sample":
        return Prediction(output, (x_t - alpha * output) / sigma)
    # output = of_eps eps - of_x_0 x_0, and x_t = alpha x_0 + sigma eps
    of_eps, of_x_0 = (alpha, fraction * sigma) if prediction_type == "v_prediction" else (torch.ones_like(alpha), fraction)
    of_eps = 1 - fraction + fraction * of_eps
    total = alpha * of_eps + sigma * of_x_0
    return Prediction((of_eps * x_t - sigma * output) / total, (of_x_0 * x_t + alpha * output) / total)


def from_prediction(
    prediction: Prediction, t: Tensor, prediction_type: str, schedule: NoiseSchedule, fraction: float = 1.0
) -> Tensor:
    """The inverse of `to_prediction`: what a network of that type would have put out. Exact in every dialect."""
    x_0, eps = prediction.x_0, prediction.eps
    _check_fraction(prediction_type, fraction)
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "sample":
        return x_0
    if prediction_type == "v_prediction":
        of_v = expand_to(schedule.alpha(t), x_0) * eps - expand_to(schedule.sigma(t), x_0) * x_0
        return of_v if fraction == 1 else torch.lerp(eps, of_v, fraction)
    return eps - fraction * x_0


def _check_fraction(prediction_type: str, fraction: float) -> None:
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type {prediction_type!r} is not known; expects one of {', '.join(PREDICTION_TYPES)}")
    if prediction_type == "sample" and fraction != 1:
        raise ValueError(f"share {fraction} of sample: expects 1; between eps and x_0 there is an output that says nothing")
