"""Cost of sampling an image, by component: text encoder, denoiser, decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import diffusers

from gendistill.metrics.cost.efficiency import Costs, measure
from gendistill.samplers import NETWORK, Sampler

BATCH_SIZES = (1, 4, 16)


def measure_costs(
    sampler: Sampler,
    prompts: Sequence[str],
    *,
    steps: int | None = None,
    guidance_scale: float | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    **measuring: Any,
) -> Costs:
    """Measure the sampling of images, each from a different prompt that was not encoded before.

    A sampler caches prompt embeddings; here every call starts with an empty cache, so that the cost includes the text
    encoder for the prompts and for the empty prompt of guidance.

    Args:
        prompts: as many as the largest batch; fewer prompts are repeated with a number appended, which costs the same. A
            class-conditional or unconditional model repeats them unchanged.
        steps, guidance_scale: the sampler's defaults where None.
        batch_sizes, measuring: see `gendistill.metrics.cost.efficiency.measure`: `warmup`, `repeats`, `country`, ...

    Raises:
        ValueError: there are no prompts, or a number is below 1.
    """
    if not prompts:
        raise ValueError("prompts: got none, expects at least 1.")
    steps = sampler.default_steps if steps is None else steps
    scale = sampler.default_guidance_scale if guidance_scale is None else guidance_scale
    distinct = list(dict.fromkeys(prompts))
    any_text = sampler.texts and sampler.own_prompts is None

    def prompt(k: int) -> str:
        repeat, index = divmod(k, len(distinct))
        return f"{distinct[index]} {repeat + 1}" if repeat and any_text else distinct[index]

    def generate(count: int) -> None:
        batch = [prompt(k) for k in range(count)]
        for _ in sampler.cold().images(batch, range(count), num_inference_steps=steps, guidance_scale=scale, batch_size=count):
            pass

    costs = measure(
        generate,
        sampler.components(),
        network=NETWORK,
        batch_sizes=batch_sizes,
        setting=sampler.setting(steps, scale),
        **measuring,
    )
    return dataclasses.replace(costs, versions={**costs.versions, "diffusers": diffusers.__version__})
