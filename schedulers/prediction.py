"""A denoiser's prediction for x_t = alpha x_0 + sigma eps, from a network of any of these prediction types.

epsilon       eps
sample        x_0
v_prediction  v = alpha eps - sigma x_0          (Salimans & Ho 2022, appendix D)
negative_v    -v, the output that diffusers' EDM schedulers call epsilon (Karras et al. 2022, equation 7)
flow          u = eps - x_0                      (rectified flow: d x_t / d sigma for alpha = 1 - sigma)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gendistill.schedulers.noise import NoiseSchedule, expand_to

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "negative_v", "flow")


@dataclass(frozen=True)
class Prediction:
    """A denoiser's predicted clean signal and noise for x_t; both (B, ...), with x_t = alpha x_0 + sigma eps."""

    x_0: Tensor
    eps: Tensor

    def __getitem__(self, index: slice | Tensor) -> Prediction:
        return Prediction(self.x_0[index], self.eps[index])

    def guided(self, unconditional: Prediction, guidance_scale: Tensor | float) -> Prediction:
        """Classifier-free guidance; scale 1 is no guidance (Ho & Salimans 2022, eq. 6 with their w = scale - 1)."""
        scale = expand_to(torch.as_tensor(guidance_scale), self.x_0)
        return Prediction(torch.lerp(unconditional.x_0, self.x_0, scale), torch.lerp(unconditional.eps, self.eps, scale))


def to_prediction(
    output: Tensor, x_t: Tensor, t: Tensor, prediction_type: str, schedule: NoiseSchedule, fraction: float = 1.0
) -> Prediction:
    """Convert a network's raw output (B, ...) at x_t (B, ...), t (B,) to x_0 and eps.

    At zero terminal SNR (alpha = 0) the output of an `epsilon` network does not determine x_0, and the division gives
    infinities. Such teachers predict v or x_0.

    Args:
        fraction: weight of v or flow in the output of a network whose prediction type is changed gradually from epsilon; the
            rest of the output is eps.

    Raises:
        ValueError: `sample` with a fraction other than 1: between eps and x_0 there is an output that does not determine the
            prediction, if sigma fraction = alpha (1 - fraction).
    """
    alpha, sigma = expand_to(schedule.alpha(t), x_t), expand_to(schedule.sigma(t), x_t)
    _check_fraction(prediction_type, fraction)
    if prediction_type == "epsilon":
        return Prediction((x_t - sigma * output) / alpha, output)
    if prediction_type == "sample":
        return Prediction(output, (x_t - alpha * output) / sigma)
    if prediction_type == "negative_v":
        return to_prediction(-output, x_t, t, "v_prediction", schedule)
    # output = eps_weight eps - x_0_weight x_0, and x_t = alpha x_0 + sigma eps
    eps_weight, x_0_weight = (
        (alpha, fraction * sigma) if prediction_type == "v_prediction" else (torch.ones_like(alpha), fraction)
    )
    eps_weight = 1 - fraction + fraction * eps_weight
    total = alpha * eps_weight + sigma * x_0_weight
    return Prediction((eps_weight * x_t - sigma * output) / total, (x_0_weight * x_t + alpha * output) / total)


def from_prediction(
    prediction: Prediction, t: Tensor, prediction_type: str, schedule: NoiseSchedule, fraction: float = 1.0
) -> Tensor:
    """The exact inverse of `to_prediction`: the raw output of a network of that prediction type."""
    x_0, eps = prediction.x_0, prediction.eps
    _check_fraction(prediction_type, fraction)
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "sample":
        return x_0
    if prediction_type == "negative_v":
        return -from_prediction(prediction, t, "v_prediction", schedule)
    if prediction_type == "v_prediction":
        v = expand_to(schedule.alpha(t), x_0) * eps - expand_to(schedule.sigma(t), x_0) * x_0
        return v if fraction == 1 else torch.lerp(eps, v, fraction)
    return eps - fraction * x_0


def _check_fraction(prediction_type: str, fraction: float) -> None:
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type {prediction_type!r} is not known; expects one of {', '.join(PREDICTION_TYPES)}")
    if prediction_type in ("sample", "negative_v") and fraction != 1:
        predicted = {"sample": "x_0", "negative_v": "-v"}[prediction_type]
        raise ValueError(
            f"fraction {fraction} of {prediction_type}: expects 1; between eps and {predicted} there is an output that "
            "determines neither"
        )
