"""What a picture of a diffusers pipeline costs, by its parts: text encoder, network, decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
from torch import nn

from gendistill.metrics.components import Component
from gendistill.metrics.efficiency import Costs, measure
from gendistill.samplers import FewStepSampler

BATCH_SIZES = (1, 4, 16)
NETWORK = "network"


def components_of(pipeline: Any) -> dict[str, Component]:
    """The parts of a pipeline that compute: its text encoders, the network that is called in every step, the decoder.

    The decoder is the VAE, called by `decode`; its parameters are those of the whole VAE, which is loaded.

    Raises:
        ValueError: the pipeline has no network that we know.
    """
    parts: dict[str, Component] = {}
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if isinstance(encoder := getattr(pipeline, name, None), nn.Module):
            parts[name] = Component(encoder)
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    if network is None:
        raise ValueError(f"pipeline: got a {type(pipeline).__name__}, takes one with a `unet` or a `transformer`.")
    parts[NETWORK] = Component(network)
    if isinstance(vae := getattr(pipeline, "vae", None), nn.Module):
        parts["decoder"] = Component(vae, "decode")
    return parts


def measure_costs(
    sampler: FewStepSampler,
    prompts: Sequence[str],
    *,
    steps: int | None = None,
    guidance_scale: float | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    warmup: int = 1,
    repeats: int = 5,
    least_seconds: float = 0.0,
    energy_seconds: float = 5.0,
    country: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> Costs:
    """Measure drawing pictures, each of a prompt of its own that was never encoded before.

    The sampler keeps what it has encoded; here every call starts without, so that the text encoder is counted as in the
    first picture of a prompt, and the empty prompt of guidance with it.

    Args:
        prompts: as many as the largest batch; where there are fewer, they come again with a number behind them, which
            costs the same. A model that knows all its prompts by itself repeats them.
        steps, guidance_scale: the sampler's defaults where None.
        batch_sizes, warmup, repeats, least_seconds, energy_seconds, country, progress: as for
            `gendistill.metrics.efficiency.measure`.

    Raises:
        ValueError: there are no prompts, or a number is below 1.
    """
    if not prompts:
        raise ValueError("prompts: got none, takes at least 1.")
    steps = sampler.default_steps if steps is None else steps
    scale = sampler.default_guidance_scale if guidance_scale is None else guidance_scale
    given = list(dict.fromkeys(prompts))

    def prompt(k: int) -> str:
        around, index = divmod(k, len(given))
        return given[index] if around == 0 or sampler.own_prompts is not None else f"{given[index]} {around + 1}"

    def draw(count: int) -> None:
        cold = FewStepSampler(sampler.pipeline, sampler.spec, sampler.eta)
        some = [prompt(k) for k in range(count)]
        for _ in cold.pictures(some, range(count), num_inference_steps=steps, guidance_scale=scale, batch_size=count):
            pass

    costs = measure(
        draw,
        components_of(sampler.pipeline),
        network=NETWORK,
        batch_sizes=batch_sizes,
        warmup=warmup,
        repeats=repeats,
        least_seconds=least_seconds,
        energy_seconds=energy_seconds,
        country=country,
        setting={
            "pipeline": type(sampler.pipeline).__name__,
            "scheduler": type(sampler.pipeline.scheduler).__name__,
            "num_inference_steps": steps,
            "guidance_scale": scale,
            "resolution": sampler.resolution,
            "text": "every prompt is encoded anew" if sampler.own_prompts is None else "no text",
        },
        progress=progress,
    )
    return dataclasses.replace(costs, versions={**costs.versions, "diffusers": diffusers.__version__})
