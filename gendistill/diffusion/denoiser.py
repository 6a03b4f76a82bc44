"""A denoiser: a network behind the uniform signature (x_t, t, Conditioning) -> Prediction, for networks of all families."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import NoiseSchedule, Prediction, from_prediction, to_prediction

NetworkCall = Callable[[Any, Tensor, Tensor, Conditioning], Tensor]


@dataclass(eq=False)
class Denoiser:
    """A diffusion teacher or student: a network, its noise schedule and its prediction type.

    Attributes:
        network: any `nn.Module`.
        schedule: the noise schedule that the network was trained with.
        prediction_type: one of `epsilon`, `sample`, `v_prediction`, `flow`.
        call: the forward call of the network's family at `schedule.network_time(t)`; returns the raw output, of x_t's shape.
        clip: for pixel-space models, the bound on |x_0|, as in the teacher's scheduler (as in diffusers, eps is not
            recomputed from the clipped x_0). The gradient passes through the clipping unchanged.
        guidance_input: the guidance scale of a network that has it as an input, where the conditions have none; None without
            that input, where guidance is classifier-free.
        normalizes_guidance: whether guided outputs get the norm of the conditional ones (`Family.normalizes_guidance`).
        fraction: the output is (1 - fraction) eps + fraction (prediction of `prediction_type`); below 1 only while a student
            changes its prediction type (`to_prediction`).
    """

    network: Any
    schedule: NoiseSchedule
    prediction_type: str
    call: NetworkCall
    clip: float | None = None
    guidance_input: float | None = None
    normalizes_guidance: bool = False
    fraction: float = 1.0

    def __call__(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Prediction:
        """The predicted x_0 and eps at x_t (B, C, H, W), t (B,) in [0, num_train_timesteps); in float32 or wider."""
        output = self.call(self.network, x_t, self.schedule.network_time(t), conditioning)
        prediction = self.prediction_of(output, x_t, t)
        if self.clip is None:
            return prediction
        x_0 = prediction.x_0
        return Prediction(x_0.detach().clamp(-self.clip, self.clip) + (x_0 - x_0.detach()), prediction.eps)

    def prediction_of(self, output: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """The prediction of a raw network output (B, ...) at x_t (B, ...), t (B,), the inverse of `output_of`."""
        dtype = torch.promote_types(x_t.dtype, torch.float32)
        return to_prediction(output.to(dtype), x_t.to(dtype), t, self.prediction_type, self.schedule, self.fraction)

    def output_of(self, prediction: Prediction, t: Tensor) -> Tensor:
        """The network output (B, ...) that corresponds to `prediction` at t (B,)."""
        return from_prediction(prediction, t, self.prediction_type, self.schedule, self.fraction)

    def guided(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, unconditional: Conditioning, scale: Tensor | float
    ) -> Prediction:
        """The prediction guided at `scale`, (B,) or one number: as an input of the network (`guidance_input`), or otherwise
        classifier-free, where 1 is no guidance, with both branches in one network call.

        `unconditional` has a batch of 1 or B; the entries that it lacks are those of `conditioning`. The unconditional branch
        is not computed where the scale is the number 1.
        """
        if self.guidance_input is not None:
            scales = torch.as_tensor(scale, dtype=torch.float32, device=x_t.device).expand(len(x_t))
            return self(x_t, t, conditioning.with_guidance(scales))
        if isinstance(scale, float) and scale == 1.0:
            return self(x_t, t, conditioning)
        batch = len(x_t)
        both = Conditioning.cat([conditioning, conditioning.under(unconditional, batch)])
        prediction = self(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        guided = prediction[:batch].guided(prediction[batch:], scale)
        if not self.normalizes_guidance:
            return guided
        conditional, output = self.output_of(prediction[:batch], t), self.output_of(guided, t)
        norm = conditional.norm(dim=-1, keepdim=True) / output.norm(dim=-1, keepdim=True)
        return self.prediction_of(output * norm, x_t, t)

    def with_prediction_type(self, prediction_type: str, fraction: float = 1.0) -> Denoiser:
        """The same network with its output interpreted as another prediction type, or as a mix of that and eps (`fraction`)."""
        return replace(self, prediction_type=prediction_type, fraction=fraction)

    @contextmanager
    def converting(self, network: Any) -> Iterator[None]:
        """While the context is open, `network` in a diffusers pipeline predicts `prediction_type` even if its own output is a
        mix of that and eps (`fraction` below 1), which no scheduler reads."""
        if self.fraction == 1:
            yield
            return
        complete = self.with_prediction_type(self.prediction_type)

        def convert(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            inputs = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            x_t, t = next(iter(inputs.values())), self.schedule.index_of(inputs["timestep"])
            complete_output = output[0] if isinstance(output, tuple) else output.sample
            raw, variance = complete_output.tensor_split([x_t.shape[1]], dim=1)
            prediction = to_prediction(raw.float(), x_t.float(), t, self.prediction_type, self.schedule, self.fraction)
            converted = torch.cat([complete.output_of(prediction, t).to(raw.dtype), variance], dim=1)
            return (converted, *output[1:]) if isinstance(output, tuple) else type(output)(sample=converted)

        hook = network.register_forward_hook(convert, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def with_network(self, network: Any) -> Denoiser:
        """The same family, schedule and prediction type with another network."""
        return replace(self, network=network)
