"""Fewer attention heads of a diffusion transformer, and so fewer channels everywhere: diffusers' configs have no other width.

Only the networks of Stable Diffusion 3 and Flux.1 can be narrowed: their positions are weights, or rotations within each head.
Positions that diffusers computes from the number of channels would be others in a narrower network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

NARROWABLE = ("SD3Transformer2DModel", "FluxTransformer2DModel")
STREAM, TIME = "stream", "time"  # channels of the residual stream, and of the time embedding
Labels = tuple[str, ...]  # adjacent runs of coupled channels along a dimension, as a whole repeated for chunked outputs


def has_fewer_heads(network: Any) -> bool:
    """Whether heads of a network can be removed."""
    return type(network).__name__ in NARROWABLE and network.config["num_attention_heads"] > 1


def with_heads(config: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the number of heads of another, and the widths that must equal heads times channels of a head."""
    if config.get("num_attention_heads") == like.get("num_attention_heads"):
        return dict(config)
    changed = {**config, "num_attention_heads": like["num_attention_heads"]}
    if "caption_projection_dim" in config:
        changed["caption_projection_dim"] = like["num_attention_heads"] * config["attention_head_dim"]
    return changed


class Slices:
    """The slices of a teacher's weights for a student with fewer heads.

    A channel is as important as its contribution to the inputs of the layers that read it (Sun et al. 2023, eq. 1), summed over
    the layers; a head as the sum of its channels.

    Args:
        predict: runs the teacher on data; called only where the student has fewer heads.
    """

    def __init__(self, teacher: Any, student: Mapping[str, Any], predict: Callable[[], Any]) -> None:
        self._kept: dict[str, Tensor] = {}
        self._sizes: dict[str, int] = {}
        full, fewer = (config.get("num_attention_heads") or 0 for config in (teacher.config, student))
        same_heads = student.get("attention_head_dim") == teacher.config.get("attention_head_dim")
        if type(teacher).__name__ in NARROWABLE and same_heads and fewer < full:
            for label, scores in _scores(teacher, predict).items():
                self._sizes[label] = len(scores)
                self._kept[label] = _chosen(scores, full, fewer, heads=label.startswith("heads:"))

    def sliced(self, name: str, weight: Tensor, shape: torch.Size) -> Tensor | None:
        """A copy of a weight, cut to `shape` along every dimension where it is larger; None where that is impossible."""
        if weight.ndim != len(shape):
            return None
        weight = weight.detach()
        for dim, size in enumerate(shape):
            if weight.shape[dim] != size:
                index = self._index(_labels(name, dim), weight.shape[dim])
                if index is None or len(index) != size:
                    return None
                weight = weight.index_select(dim, index.to(weight.device))
        return weight.clone()

    def _index(self, labels: Labels, size: int) -> Tensor | None:
        if not all(label in self._kept for label in labels):
            return None
        starts, period = dict[str, int](), 0
        for label in labels:
            starts[label], period = period, period + self._sizes[label]
        chunks = range(0, size, period)
        return torch.cat([chunk + starts[label] + self._kept[label] for chunk in chunks for label in labels])


def _chosen(scores: Tensor, full: int, fewer: int, *, heads: bool) -> Tensor:
    """Ascending indices of the kept channels; of complete heads where `heads`."""
    size = len(scores) // full
    if heads:
        chosen = scores.view(full, size).sum(1).topk(fewer).indices.sort().values
        return (chosen[:, None] * size + torch.arange(size)).flatten()
    return scores.topk(size * fewer).indices.sort().values


def _labels(name: str, dim: int) -> Labels:
    """The labels of the channels along a dimension of a weight; 0 is the layer's output, except for the table of positions."""
    layer = re.sub(r"\.(weight|bias)$", "", name)
    reads = dim > 0 and layer != name
    if found := re.fullmatch(r"(time_text_embed\.\w+)\.linear_([12])", layer):
        first = found[2] == "1"
        return (f"hidden:{found[1]}",) if first != reads else (TIME,)
    if found := re.fullmatch(r"(.*\.attn2?)\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)", layer):
        return (f"heads:{found[1]}",) if ("out" in found[2]) == reads else (STREAM,)
    if found := re.fullmatch(r"(.*\.ff\w*)\.net\.(0\.proj|2)", layer):
        return (f"hidden:{found[1]}",) if (found[2] == "2") == reads else (STREAM,)
    if found := re.fullmatch(r"(.+)\.proj_mlp", layer):
        return (STREAM,) if reads else (f"hidden:{found[1]}",)
    if found := re.fullmatch(r"(single_transformer_blocks\.\d+)\.proj_out", layer):
        return (f"heads:{found[1]}.attn", f"hidden:{found[1]}") if reads else (STREAM,)
    if re.search(r"norm\w*\.linear$", layer):
        return (TIME,) if reads else (STREAM,)
    return (STREAM,)


@torch.no_grad()
def _scores(network: Any, predict: Callable[[], Any]) -> dict[str, Tensor]:
    """The importance of the channels (size,) of every label, on the CPU."""
    layers = dict(_layers(network))
    energies: dict[str, Tensor] = {}

    def measure(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            energies[path] = inputs[0].flatten(0, -2).double().square().mean(0)

        return hook

    handles = [layer.register_forward_pre_hook(measure(path)) for path, layer in layers.items()]
    try:
        predict()
    finally:
        for handle in handles:
            handle.remove()
    heads = network.config["num_attention_heads"] * network.config["attention_head_dim"]
    scores: dict[str, Tensor] = {}
    for path, energy in energies.items():
        contributions = layers[path].weight.detach().double().square().sum(0) * energy
        fractions = (contributions / contributions.sum().clamp(min=1e-30)).sqrt().cpu()
        labels = _labels(f"{path}.weight", 1)
        sizes = [len(fractions)] if len(labels) == 1 else [heads, len(fractions) - heads]
        for label, part in zip(labels, fractions.split(sizes), strict=True):
            scores[label] = scores[label] + part if label in scores else part
    return scores


def _layers(network: Any) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers that read channels of the network, by path; those that read prompts and latents have other inputs."""
    outside = ("context_embedder", "x_embedder")
    for path, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and path not in outside and not re.fullmatch(r"time_text_embed\.\w+\.linear_1", path):
            yield path, layer
