"""How much every channel of a `UNet2DConditionModel` matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gendistill.networks.pruning.unet_channels import Channels, Runs, Scores

Importance = Callable[[Any, Channels], Scores]

NUM_TIMESTEPS, TOKENS = 1000, 77
SAMPLES, PIXELS = 8, 16  # noise that is enough to see which channels are large


def group_norms(unet: Any, found: Channels) -> Scores:
    """The L2 norm of all weights that make a channel and all that read it: label to (size,).

    Li et al. 2017, "Pruning Filters for Efficient ConvNets", with L2 and over all layers that share the channel. Every weight
    counts alike: its squares are in proportion to their mean over the channels. Along residual streams this is no better than
    chance on the network that ships with the project: `read_norms` is.
    """
    weights, scores = unet.state_dict(), Scores()
    for name, axes in found.axes.items():
        square = weights[name].detach().double().square()
        for dim, runs in enumerate(axes):
            if runs:
                other = [d for d in range(square.ndim) if d != dim]
                each = square.sum(other) if other else square
                _add(scores, runs, each / each.mean().clamp(min=1e-30))
    return {label: square.sqrt() for label, square in scores.items()}


def read_norms(unet: Any, found: Channels) -> Scores:
    """The size of what every layer reads from a channel, as a share of all that it reads, summed over the layers.

    A channel's weights times the root mean square of what runs through it: Sun et al. 2023, "A Simple and Effective Pruning
    Approach for Large Language Models", eq. 1, for whole channels. Without data: the network reads noise in place of latents
    and prompts, at timesteps spread over all. Queries and keys, that no layer reads, go by `group_norms`.
    """
    energies: dict[str, Tensor] = {}
    modules = dict(unet.named_modules())

    def look(path: str, dim: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            energies[path] = inputs[0].movedim(dim, -1).flatten(0, -2).double().square().mean(0)

        return hook

    layers = {name.removesuffix(".weight"): axes[1] for name, axes in found.axes.items() if len(axes) > 1 and axes[1]}
    layers = {path: runs for path, runs in layers.items() if isinstance(modules[path], nn.Linear | nn.Conv2d)}
    hooks = [
        modules[path].register_forward_pre_hook(look(path, 1 if isinstance(modules[path], nn.Conv2d) else -1))
        for path in layers
    ]
    try:
        with torch.no_grad():
            unet(*example_inputs(unet.config, SAMPLES, PIXELS, unet.device, unet.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    scores = Scores()
    for path, energy in energies.items():
        weight = modules[path].weight.detach().double().square()
        each = (weight.flatten(2).sum(2) if weight.ndim > 2 else weight).sum(0) * energy
        _add(scores, layers[path], (each / each.sum().clamp(min=1e-30)).sqrt())
    return {**group_norms(unet, found), **scores}


def _add(scores: Scores, runs: Runs, each: Tensor) -> None:
    for run, part in zip(runs, each.split([run.size for run in runs]), strict=True):
        scores[run.label] = scores[run.label] + part if run.label in scores else part


def example_inputs(
    config: Mapping[str, Any],
    samples: int = 1,
    max_pixels: int | None = None,
    device: torch.device | str = "meta",
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, ...]:
    """What a network of this config takes, in the order of its `forward`: noise, at timesteps from the last to the first.

    Args:
        max_pixels: a side of the latents is at most as long; the config's own length if None.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(samples, *shape, generator=generator).to(device, dtype)

    size = config["sample_size"] or 64
    size = [min(n, max_pixels or n) for n in ([size, size] if isinstance(size, int) else size)]
    text = config["encoder_hid_dim"] or config["cross_attention_dim"]
    labels = condition = added = None
    if config["class_embed_type"] in ("projection", "simple_projection"):
        labels = noise(config["projection_class_embeddings_input_dim"])
    elif config["class_embed_type"] == "timestep" or config["num_class_embeds"] is not None:
        labels = (torch.arange(samples) % (config["num_class_embeds"] or NUM_TIMESTEPS)).to(device)
    if config["time_cond_proj_dim"] is not None:
        condition = noise(config["time_cond_proj_dim"])
    if config["addition_embed_type"] == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        added = {"text_embeds": noise(pooled), "time_ids": torch.tensor([[8.0 * n for n in (*size, 0, 0, *size)]] * samples)}
        added["time_ids"] = added["time_ids"].to(device, dtype)
    timesteps = torch.linspace(NUM_TIMESTEPS - 1, 0, samples).long().to(device)
    prompt = noise(TOKENS, text if isinstance(text, int) else text[0])
    return noise(config["in_channels"], *size), timesteps, prompt, labels, condition, None, None, added
