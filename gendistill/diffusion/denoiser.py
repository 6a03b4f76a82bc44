"""A network, adapted once: (x_t, t, Conditioning) -> Prediction. No method ever sees a UNet's call signature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import NoiseSchedule, Prediction, from_prediction, to_prediction

NetworkCall = Callable[[Any, Tensor, Tensor, Conditioning], Tensor]


@dataclass(eq=False)
class Denoiser:
    """What a diffusion teacher or student is: a network, its noise schedule and the dialect that it predicts in.

    Attributes:
        network: any `nn.Module`.
        schedule: of the noise that the network was trained on.
        prediction_type: one of `epsilon`, `sample`, `v_prediction`, `flow`.
        call: how this family's network is called; gives the raw output, of x_t's shape.
        clip: of pixels, the largest |x_0|, as the teacher's scheduler clips it (and as diffusers' schedulers do: eps stays
            what the network said). The gradient passes as if nothing were clipped.
        share: how much of the output is of that dialect, the rest being eps; 1 but on the way there (`to_prediction`).
    """

    network: Any
    schedule: NoiseSchedule
    prediction_type: str
    call: NetworkCall
    clip: float | None = None
    fraction: float = 1.0

    def __call__(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Prediction:
        """x_0 and eps at x_t (B, C, H, W), t (B,) in [0, num_train_timesteps); computed in float32 at least."""
        output = self.call(self.network, x_t, t, conditioning)
        dtype = torch.promote_types(x_t.dtype, torch.float32)
        prediction = to_prediction(output.to(dtype), x_t.to(dtype), t, self.prediction_type, self.schedule, self.fraction)
        if self.clip is None:
            return prediction
        x_0 = prediction.x_0
        return Prediction(x_0.detach().clamp(-self.clip, self.clip) + (x_0 - x_0.detach()), prediction.eps)

    def output_of(self, prediction: Prediction, t: Tensor) -> Tensor:
        """What its network would have put out (B, ...) to say `prediction` at t (B,)."""
        return from_prediction(prediction, t, self.prediction_type, self.schedule, self.fraction)

    def guided(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, unconditional: Conditioning, scale: Tensor | float
    ) -> Prediction:
        """Classifier-free guidance at `scale` ((B,) or one number; 1 is none), both branches in one network call.

        `unconditional` holds one condition (batch of 1) or B, of which `conditioning` keeps what it says nothing of. Where
        the scale is the number 1 its branch is not computed.
        """
        if isinstance(scale, float) and scale == 1.0:
            return self(x_t, t, conditioning)
        batch = len(x_t)
        both = Conditioning.cat([conditioning, conditioning.under(unconditional, batch)])
        prediction = self(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        return prediction[:batch].guided(prediction[batch:], scale)

    def with_prediction_type(self, prediction_type: str, fraction: float = 1.0) -> Denoiser:
        """The same network, read in another dialect, or in one that is partly eps still."""
        return replace(self, prediction_type=prediction_type, fraction=fraction)

    def with_network(self, network: Any) -> Denoiser:
        """The same family, schedule and dialect around other weights."""
        return replace(self, network=network)
