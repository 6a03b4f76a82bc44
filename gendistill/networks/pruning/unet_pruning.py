"""A smaller `UNet2DConditionModel`, initialized with its teacher's weights: fewer channels, fewer blocks, or both.

The student's architecture is a plain diffusers config, which plain diffusers can open.
"""

from __future__ import annotations

import difflib
import inspect
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gendistill.networks.counting import macs, macs_by_module
from gendistill.networks.pruning.unet_importance import Importance, example_inputs, read_norms
from gendistill.networks.pruning.unet_weights import transfer

TOLERANCE = 0.1  # relative error of the multiply-accumulates
Config = dict[str, Any]


def matching_config(unet: Any, config: Mapping[str, Any], importance: Importance = read_norms) -> tuple[Any, list[str]]:
    """A network of a user-defined config, initialized with the weights of `unet`, complete or their most important channels.

    Args:
        config: entries that differ from the teacher's config, or a complete config.

    Returns:
        The network, and the names of the weights with random initialization (from torch's global generator).
    """
    teacher_config = _config_of(unet)
    known = [name for name in inspect.signature(UNet2DConditionModel.__init__).parameters if name != "self"]
    for name in config:
        if name not in known and not name.startswith("_"):
            near = difflib.get_close_matches(name, known, 1)
            raise ValueError(f"config: a UNet2DConditionModel has no {name}{f' (the nearest is {near[0]})' if near else ''}.")
    return _initialized(unet, {**teacher_config, **_plain(config)}, importance)


def narrower_config(config: Mapping[str, Any], fraction: float) -> Config:
    """The config with a fraction, in (0, 1], of the channels of every level.

    The width of a level remains a multiple of its numbers of norm groups and attention heads. The number of heads is kept and
    their dimension shrinks; the sizes of text embeddings and latents are kept.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction:g}: expects more than 0 and at most 1.")
    widths = config["block_out_channels"]
    return {**config, "block_out_channels": [_width(w, u, fraction) for w, u in zip(widths, _units(config), strict=True)]}


def fewer_blocks_config(config: Mapping[str, Any], mid: bool = True) -> Config:
    """The config with one layer per block: BK-SDM (Kim et al. 2023, section 3.1).

    Down blocks keep their first pair of a residual block and a transformer, up blocks their first and their last pair.

    Args:
        mid: keep the mid block. With one layer per block, a teacher has no other block that can be removed.
    """
    if max_layers(config) == 1 and (mid or config["mid_block_type"] is None):
        raise ValueError(
            "layers_per_block 1: there is no block to remove" + (" but the mid block (mid=False)." if mid else ".")
        )
    fewer = {**config, "layers_per_block": 1, "mid_block_type": config["mid_block_type"] if mid else None}
    depths, reverse = config["transformer_layers_per_block"], config.get("reverse_transformer_layers_per_block")
    if isinstance(depths, list | tuple):
        fewer["transformer_layers_per_block"] = [d if isinstance(d, int) else [d[0]] for d in depths]
    if reverse is not None:
        fewer["reverse_transformer_layers_per_block"] = [d if isinstance(d, int) else [d[0], d[-1]] for d in reverse]
    return fewer


def smaller_config(
    config: Mapping[str, Any], factor: float, example: Sequence[Any] | None = None, *, blocks: bool = False
) -> Config:
    """The config with 1 / `factor` of the multiply-accumulates, within 10 %; candidates are built on the meta device.

    Args:
        example: positional arguments of the network's `forward`; costs are those of the first sample. None: derived from the
            config.
        blocks: first reduce every block to one layer or, if it has only one, remove the mid block.

    Raises:
        ValueError: no config comes near enough; the message states the nearest possible factor.
    """
    if not 1 < factor < math.inf:
        raise ValueError(f"factor {factor:g}: expects more than 1.")
    inputs = tree_map(_meta, tuple(example)) if example is not None else example_inputs(config)
    start = fewer_blocks_config(config, mid=max_layers(config) > 1) if blocks else dict(config)
    teacher_macs = macs(on_meta(config), inputs)
    widest = on_meta(start)
    widest_macs, sizes = macs_by_module(widest, inputs), _sizes(widest)

    @cache
    def deviation(widths: tuple[int, ...]) -> float:
        """log(multiply-accumulates / target); the multiply-accumulates of each layer are proportional to its size."""
        narrow = _sizes(on_meta({**start, "block_out_channels": widths}))
        count = sum(n * narrow[at] / sizes[at] if at in narrow and at in sizes else n for at, n in widest_macs.items())
        return math.log(count * factor / teacher_macs)

    ladder = [tuple(narrower_config(start, fraction)["block_out_channels"]) for fraction in _fractions(start)]
    low = bisect_right(ladder, 0.0, key=deviation)  # the first config above the target
    near = min(ladder[max(low - 1, 0) : low + 1], key=lambda widths: abs(deviation(widths)))
    if abs(math.exp(deviation(near)) - 1) > TOLERANCE:
        near = min([near, *_neighbours(near, start)], key=lambda widths: abs(deviation(widths)))
    smaller = {**start, "block_out_channels": list(near)}
    reached = teacher_macs / macs(on_meta(smaller), inputs)
    if abs(factor / reached - 1) > TOLERANCE:
        steps = ", ".join(map(str, _units(start)))
        raise ValueError(
            f"factor {factor:g}: the nearest is {reached:.3g}, with block_out_channels {list(near)}; "
            f"widths change in steps of {steps}, for norms and attention heads."
        )
    return smaller


def on_meta(config: Mapping[str, Any]) -> Any:
    """A network on the meta device: shapes without weights."""
    try:
        with torch.device("meta"):
            return UNet2DConditionModel.from_config(_plain(config))
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"config: diffusers cannot build a UNet2DConditionModel from it: {error}") from None


def _plain(config: Mapping[str, Any]) -> Config:
    """The config without diffusers' private entries: entries listed in `_use_default_values` would be reset to defaults."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _meta(value: Any) -> Any:
    return value[:1].to("meta") if isinstance(value, Tensor) and value.ndim else value


def _config_of(unet: Any) -> Config:
    unet_class: Any = UNet2DConditionModel  # diffusers does not annotate the config
    if not isinstance(unet, unet_class):
        raise ValueError(f"unet: expects a UNet2DConditionModel; got {type(unet).__name__}.")
    if unet.device.type == "meta":
        raise ValueError("unet: has no weights (it is on the meta device); smaller_config needs only a config.")
    if getattr(unet, "peft_config", None):
        names = ", ".join(unet.peft_config)
        raise ValueError(f"unet: has adapters ({names}); expects a network without adapters: fuse and unload them first.")
    return _plain(unet.config)


def max_layers(config: Mapping[str, Any]) -> int:
    """Layers of the deepest block."""
    layers = config["layers_per_block"]
    return layers if isinstance(layers, int) else max(layers)


def _units(config: Mapping[str, Any]) -> list[int]:
    """For each level, the number that divides its width: the least common multiple of norm groups and attention heads."""
    heads, levels = config["attention_head_dim"], len(config["block_out_channels"])
    heads = [heads] * levels if isinstance(heads, int) else list(heads)
    attention = ["CrossAttn" in down or "CrossAttn" in up for down, up in _levels(config)]
    attention[-1] |= "CrossAttn" in (config["mid_block_type"] or "")
    groups = config["norm_num_groups"] or 1
    return [math.lcm(groups, count if has_attention else 1) for count, has_attention in zip(heads, attention, strict=True)]


def _levels(config: Mapping[str, Any]) -> zip[tuple[str, str]]:
    return zip(config["down_block_types"], reversed(config["up_block_types"]), strict=True)


def _width(width: int, unit: int, fraction: float) -> int:
    """The multiple of `unit` that is nearest to `fraction` of `width`."""
    return min(max(math.floor(width * fraction / unit + 0.5), 1) * unit, width)


def _sizes(unet: Any) -> dict[str, int]:
    """A number proportional to the multiply-accumulates of each layer: input times output channels, dimensions of all heads."""
    sizes: dict[str, int] = {}
    for path, module in unet.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            sizes[path] = module.weight[..., 0, 0].numel() if module.weight.ndim > 2 else module.weight.numel()
        elif isinstance(module, Attention):
            sizes[path] = module.to_q.out_features
    return sizes


def _fractions(config: Mapping[str, Any]) -> list[float]:
    """Ascending, one fraction for each distinct config that `narrower_config` can return."""
    widths, units = config["block_out_channels"], _units(config)
    steps = {(k + 0.5) * unit / width for width, unit in zip(widths, units, strict=True) for k in range(1, width // unit + 1)}
    bounds = [0.0, *sorted(step for step in steps if step < 1), 1.0]
    return [*((low + high) / 2 for low, high in pairwise(bounds)), 1.0]


def _neighbours(widths: tuple[int, ...], config: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Widths with one step up or down at one level, or with opposite steps at two adjacent levels."""
    full, units = config["block_out_channels"], _units(config)
    single = [
        [step * units[k] if k == level else 0 for k in range(len(widths))] for level in range(len(widths)) for step in (1, -1)
    ]
    double = [[a + b for a, b in zip(up, down, strict=True)] for up, down in zip(single[::2], single[3::2], strict=False)]
    moves = [*single, *double, *([-step for step in move] for move in double)]
    moved = [tuple(width + step for width, step in zip(widths, move, strict=True)) for move in moves]
    return [m for m in moved if all(unit <= n <= limit for n, unit, limit in zip(m, units, full, strict=True))]


def _initialized(unet: Any, config: Config, importance: Importance) -> tuple[Any, list[str]]:
    student = on_meta(config)
    weights, fresh = transfer(unet, on_meta(_with_widths_of(unet.config, config)), student, importance)
    if fresh:
        random = UNet2DConditionModel.from_config(_plain(config)).state_dict()
        weights.update({name: random[name].to(unet.device, unet.dtype) for name in fresh})
    student.load_state_dict(weights, assign=True)
    return student.train(unet.training).requires_grad_(True), fresh


def _with_widths_of(teacher: Mapping[str, Any], config: Config) -> Config:
    """The student's config with the widths, heads and norm groups of the teacher's outer levels."""
    levels = len(config["block_out_channels"])

    def outer(name: str) -> list[int]:
        teacher_values, student_values = teacher[name], config[name]
        if isinstance(teacher_values, int):
            teacher_values = [teacher_values] * len(teacher["block_out_channels"])
        if isinstance(student_values, int):
            student_values = [student_values] * levels
        return [*teacher_values[:levels], *student_values[len(teacher_values) :]]

    same = {name: outer(name) for name in ("block_out_channels", "attention_head_dim")}
    return {**config, **same, **{name: teacher[name] for name in ("norm_num_groups", "time_embedding_dim")}}
