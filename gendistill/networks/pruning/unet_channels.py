"""Which channels of a `UNet2DConditionModel` can only be kept or dropped together, and which of them to keep.

A run of channels has a label. It is the same wherever the same numbers flow: along a residual stream, on both sides of an
activation, in queries and keys, in the value and the gate of a feed-forward layer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

DOWN, UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
MID = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")
TIMESTEPS, TIME = "timesteps", "time"


@dataclass(frozen=True)
class Run:
    """`size` channels that lie side by side in a weight. `heads` is how many attention heads share them equally."""

    label: str
    size: int
    heads: int = 1


Runs = tuple[Run, ...]
Scores = dict[str, Tensor]


@dataclass
class Channels:
    """The channels of a network.

    Attributes:
        axes: of a weight's name, the runs along its first and its second dimension; none (`()`) where a dimension is not a
            matter of width, like text and latents. Weights that are not in it are of that kind altogether.
        cuts: of a label, where a group of a group norm begins, as a run of its own or beside another one.
        identities: of a residual block without a convolution in its shortcut, what runs through.
    """

    axes: dict[str, tuple[Runs, ...]] = field(default_factory=dict)
    cuts: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    identities: dict[str, Run] = field(default_factory=dict)


def channels(unet: Any) -> Channels:
    """Follow the channels of a `UNet2DConditionModel` from its input to its output; its weights are not read.

    Raises:
        ValueError: for blocks of other kinds than those of Stable Diffusion 1, 2 and XL.
    """
    for block, known in [*((b, DOWN) for b in unet.down_blocks), (unet.mid_block, MID), *((b, UP) for b in unet.up_blocks)]:
        if block is not None and type(block).__name__ not in known:
            raise ValueError(f"unet: channels of a {type(block).__name__} are not known; expects {', '.join(known)}.")
    if unet.config["dual_cross_attention"]:
        raise ValueError("dual_cross_attention True: channels of two transformers side by side are not known; expects False.")
    return _ChannelWalk(unet).found


class _ChannelWalk:
    def __init__(self, unet: Any) -> None:
        self.found = Channels()
        self.time = self.embeddings(unet)
        stream = Run("conv_in", unet.conv_in.out_channels)
        self.layer("conv_in", unet.conv_in, (stream,), ())
        skips = [stream]
        for i, block in enumerate(unet.down_blocks):
            path = f"down_blocks.{i}"
            for j, resnet in enumerate(block.resnets):
                stream = self.resnet(f"{path}.resnets.{j}", resnet, (stream,))
                self.attention(f"{path}.attentions.{j}", block, j, stream)
                skips.append(stream)
            if block.downsamplers is not None:
                stream = self.conv(f"{path}.downsamplers.0.conv", block.downsamplers[0].conv, stream)
                skips.append(stream)
        if unet.mid_block is not None:
            for j, resnet in enumerate(unet.mid_block.resnets):
                if j:
                    self.attention(f"mid_block.attentions.{j - 1}", unet.mid_block, j - 1, stream)
                stream = self.resnet(f"mid_block.resnets.{j}", resnet, (stream,))
        for i, block in enumerate(unet.up_blocks):
            path = f"up_blocks.{i}"
            for j, resnet in enumerate(block.resnets):
                stream = self.resnet(f"{path}.resnets.{j}", resnet, (stream, skips.pop()))
                self.attention(f"{path}.attentions.{j}", block, j, stream)
            if block.upsamplers is not None:
                stream = self.conv(f"{path}.upsamplers.0.conv", block.upsamplers[0].conv, stream)
        self.norm("conv_norm_out", unet.conv_norm_out, (stream,))
        self.layer("conv_out", unet.conv_out, (), (stream,))

    def layer(self, path: str, layer: Any, out: Runs, into: Runs) -> None:
        self.found.axes[f"{path}.weight"] = (out, into)
        if getattr(layer, "bias", None) is not None:
            self.found.axes[f"{path}.bias"] = (out,)

    def norm(self, path: str, norm: Any, runs: Runs) -> None:
        if norm is None or norm.weight is None:
            return
        self.found.axes[f"{path}.weight"] = self.found.axes[f"{path}.bias"] = (runs,)
        if not isinstance(norm, nn.GroupNorm):
            return
        start = 0
        for run in runs:
            begins = range(0, norm.num_channels, norm.num_channels // norm.num_groups)
            self.found.cuts[run.label] |= {cut - start for cut in begins if start <= cut < start + run.size}
            start += run.size

    def conv(self, path: str, conv: Any, stream: Run) -> Run:
        """A convolution between two streams."""
        out = Run(path, conv.out_channels)
        self.layer(path, conv, (out,), (stream,))
        return out

    def resnet(self, path: str, resnet: Any, into: Runs) -> Run:
        inner = Run(f"{path}.conv1", resnet.conv1.out_channels)
        out = into[0] if resnet.conv_shortcut is None else Run(path, resnet.conv2.out_channels)
        self.norm(f"{path}.norm1", resnet.norm1, into)
        self.layer(f"{path}.conv1", resnet.conv1, (inner,), into)
        if resnet.time_emb_proj is not None:
            shifted = (inner, inner) if resnet.time_embedding_norm == "scale_shift" else (inner,)
            self.layer(f"{path}.time_emb_proj", resnet.time_emb_proj, shifted, self.time)
        self.norm(f"{path}.norm2", resnet.norm2, (inner,))
        self.layer(f"{path}.conv2", resnet.conv2, (out,), (inner,))
        if resnet.conv_shortcut is None:
            self.found.identities[path] = out
        else:
            self.layer(f"{path}.conv_shortcut", resnet.conv_shortcut, (out,), into)
        return out

    def attention(self, path: str, block: Any, j: int, stream: Run) -> None:
        """The j-th transformer of a block, where it has them."""
        if not hasattr(block, "attentions") or block.attentions[j] is None:
            return
        transformer = block.attentions[j]
        inner = Run(path, transformer.inner_dim)
        self.norm(f"{path}.norm", transformer.norm, (stream,))
        self.layer(f"{path}.proj_in", transformer.proj_in, (inner,), (stream,))
        for k, layer in enumerate(transformer.transformer_blocks):
            at = f"{path}.transformer_blocks.{k}"
            for name in ("norm1", "norm2", "norm3"):
                self.norm(f"{at}.{name}", getattr(layer, name), (inner,))
            for name in ("attn1", "attn2"):
                self.heads(f"{at}.{name}", getattr(layer, name), inner)
            hidden = Run(f"{at}.ff", layer.ff.net[2].in_features)
            both = (hidden,) * (layer.ff.net[0].proj.out_features // hidden.size)  # GEGLU: value and gate
            self.layer(f"{at}.ff.net.0.proj", layer.ff.net[0].proj, both, (inner,))
            self.layer(f"{at}.ff.net.2", layer.ff.net[2], (inner,), (hidden,))
        self.layer(f"{path}.proj_out", transformer.proj_out, (stream,), (inner,))

    def heads(self, path: str, attention: Any, inner: Run) -> None:
        keys = Run(f"{path}.to_k", attention.to_q.out_features, attention.heads)
        values = Run(f"{path}.to_v", attention.to_v.out_features, attention.heads)
        attended = () if attention.is_cross_attention else (inner,)
        self.layer(f"{path}.to_q", attention.to_q, (keys,), (inner,))
        self.layer(f"{path}.to_k", attention.to_k, (keys,), attended)
        self.layer(f"{path}.to_v", attention.to_v, (values,), attended)
        self.layer(f"{path}.to_out.0", attention.to_out[0], (inner,), (values,))

    def embeddings(self, unet: Any) -> Runs:
        """The embedding that every residual block reads: of the timestep, of what is added to it or stands beside it."""
        time = Run(TIME, unet.time_embedding.linear_2.out_features)
        beside = unet.config["class_embeddings_concat"]
        classes = Run("class", time.size) if beside else time
        steps = (Run(TIMESTEPS, unet.time_embedding.linear_1.in_features),)
        self.embedding("time_embedding", unet.time_embedding, time, steps)
        if unet.time_embedding.cond_proj is not None:
            self.layer("time_embedding.cond_proj", unet.time_embedding.cond_proj, steps, ())
        timed = unet.config["class_embed_type"] == "timestep"
        self.embedding("class_embedding", unet.class_embedding, classes, steps if timed else ())
        self.embedding("add_embedding", getattr(unet, "add_embedding", None), time, ())
        return (time, classes) if beside else (time,)

    def embedding(self, path: str, module: Any, out: Run, into: Runs) -> None:
        if isinstance(module, TimestepEmbedding):
            hidden = Run(path, module.linear_1.out_features)
            self.layer(f"{path}.linear_1", module.linear_1, (hidden,), into)
            self.layer(f"{path}.linear_2", module.linear_2, (out,), (hidden,))
        elif isinstance(module, nn.Embedding):
            self.found.axes[f"{path}.weight"] = ((), (out,))
        elif isinstance(module, nn.Linear):
            self.layer(path, module, (out,), into)


def kept(run: Run, narrow: Run, scores: Scores, cuts: Mapping[str, set[int]]) -> Tensor | None:
    """Indices (narrow.size,), ascending, of the channels of `run` that stay where it is to be as narrow as `narrow`.

    Every group of a group norm keeps its share, and so does every attention head. Heads go as a whole where there are fewer.
    Of sinusoids of the timestep, those stay whose frequencies are nearest to a narrower network's own. None where a run would
    have to grow.
    """
    if run.size == narrow.size:
        return torch.arange(run.size)
    if narrow.size > run.size:
        return None
    if run.label == TIMESTEPS:
        return _nearest_frequencies(run.size, narrow.size)
    score = scores[run.label].cpu()
    if run.heads > 1 or narrow.heads > 1:
        return _kept_in_heads(score, run, narrow)
    even = {cut for cut in cuts.get(run.label, ()) if cut * narrow.size % run.size == 0}
    bounds = sorted(even | {0, run.size})
    best = []
    for low, high in pairwise(bounds):
        stay = (high - low) * narrow.size // run.size
        best.append(low + score[low:high].topk(stay).indices.sort().values)
    return torch.cat(best)


def _nearest_frequencies(size: int, fewer: int) -> Tensor:
    """Of `size` sinusoids, cosines before sines or the other way round, each with frequencies 10000^(-i / (size // 2))."""
    half, less = size // 2, fewer // 2
    places = [min(math.floor(i * half / less + 0.5), half - 1) for i in range(less)]
    return torch.tensor([*places, *(half + place for place in places), *([size - 1] if fewer % 2 else [])])


def _kept_in_heads(score: Tensor, run: Run, narrow: Run) -> Tensor | None:
    dims, fewer = run.size // run.heads, narrow.size // narrow.heads
    if narrow.heads > run.heads or fewer > dims:
        return None
    each = score.view(run.heads, dims)
    heads = each.square().sum(1).topk(narrow.heads).indices.sort().values
    inside = each[heads].topk(fewer, 1).indices.sort(1).values
    return (heads[:, None] * dims + inside).flatten()
