"""What an image of any sampler costs, by its parts: text encoder, network, decoder."""

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
    """Measure sampling images, each of a prompt of its own that was never encoded before.

    The sampler keeps what it has encoded; here every call starts without, so that the text encoder is counted as in the
    first image of a prompt, and the empty prompt of guidance with it.

    Args:
        prompts: as many as the largest batch; where there are fewer, they come again with a number behind them, which
            costs the same. A model that knows all its prompts by itself repeats them.
        steps, guidance_scale: the sampler's defaults where None.
        batch_sizes, measuring: as for `gendistill.metrics.cost.efficiency.measure`: `warmup`, `repeats`, `country`, ...

    Raises:
        ValueError: there are no prompts, or a number is below 1.
    """
    if not prompts:
        raise ValueError("prompts: got none, expects at least 1.")
    steps = sampler.default_steps if steps is None else steps
    scale = sampler.default_guidance_scale if guidance_scale is None else guidance_scale
    given = list(dict.fromkeys(prompts))
    any_text = sampler.texts and sampler.own_prompts is None

    def prompt(k: int) -> str:
        around, index = divmod(k, len(given))
        return f"{given[index]} {around + 1}" if around and any_text else given[index]

    def generate(count: int) -> None:
        some = [prompt(k) for k in range(count)]
        for _ in sampler.cold().images(some, range(count), num_inference_steps=steps, guidance_scale=scale, batch_size=count):
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
