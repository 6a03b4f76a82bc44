"""A smaller `UNet2DConditionModel` that starts from its teacher's weights: fewer channels, fewer blocks, or both.

Every student is described by a plain diffusers config, so that plain diffusers opens it.
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

TOLERANCE = 0.1  # of the multiply-accumulates that were asked for
Config = dict[str, Any]


def matching_config(unet: Any, config: Mapping[str, Any], importance: Importance = read_norms) -> tuple[Any, list[str]]:
    """A network of the user's own config, with every weight of `unet` that fits, whole or as its most important slice.

    Args:
        config: what differs from the teacher's config, or all of it.

    Returns:
        The network, and the names of the weights that start fresh (sampled by torch's global generator).
    """
    ours = _config_of(unet)
    known = [name for name in inspect.signature(UNet2DConditionModel.__init__).parameters if name != "self"]
    for name in config:
        if name not in known and not name.startswith("_"):
            near = difflib.get_close_matches(name, known, 1)
            raise ValueError(f"config: a UNet2DConditionModel has no {name}{f' (the nearest is {near[0]})' if near else ''}.")
    return _start(unet, {**ours, **_plain(config)}, importance)


def narrower_config(config: Mapping[str, Any], share: float) -> Config:
    """The config with `share` of the channels of every level, in (0, 1].

    A level keeps a multiple of what its group norms and its attention heads take. Heads keep their number and lose
    dimensions; prompts and latents keep theirs.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share:g}: expects more than 0 and at most 1.")
    widths = config["block_out_channels"]
    return {**config, "block_out_channels": [_width(w, u, share) for w, u in zip(widths, _units(config), strict=True)]}


def fewer_blocks_config(config: Mapping[str, Any], mid: bool = True) -> Config:
    """The config with one layer a block: BK-SDM (Kim et al. 2023, section 3.1).

    Down blocks keep their first pair of a residual block and a transformer, up blocks their first and their last.

    Args:
        mid: keep the block in the middle. Of a teacher with one layer a block, it is all that can go.
    """
    one = max_layers(config) == 1
    if one and (mid or config["mid_block_type"] is None):
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
    """The config that spends 1 / `factor` of the multiply-accumulates, within 10 %; candidates live on the meta device.

    Args:
        example: what the network's forward takes, in its order, of which the first sample is counted; made from the config
            if None.
        blocks: first reduce every block to one layer, or, where it has only one, leave the mid block out.

    Raises:
        ValueError: if that cannot be reached, naming the nearest factor that can.
    """
    if not 1 < factor < math.inf:
        raise ValueError(f"factor {factor:g}: expects more than 1.")
    inputs = tree_map(_meta, tuple(example)) if example is not None else example_inputs(config)
    start = fewer_blocks_config(config, mid=max_layers(config) > 1) if blocks else dict(config)
    whole = macs(on_meta(config), inputs)
    widest = on_meta(start)
    spent, sizes = macs_by_module(widest, inputs), _sizes(widest)

    @cache
    def deviation(widths: tuple[int, ...]) -> float:
        """log(multiply-accumulates / those asked for): every layer spends in proportion to its size."""
        thin = _sizes(on_meta({**start, "block_out_channels": widths}))
        count = sum(n * thin[at] / sizes[at] if at in thin and at in sizes else n for at, n in spent.items())
        return math.log(count * factor / whole)

    ladder = [tuple(narrower_config(start, share)["block_out_channels"]) for share in _shares(start)]
    low = bisect_right(ladder, 0.0, key=deviation)  # the first rung that is too much
    near = min(ladder[max(low - 1, 0) : low + 1], key=lambda widths: abs(deviation(widths)))
    if abs(math.exp(deviation(near)) - 1) > TOLERANCE:
        near = min([near, *_beside(near, start)], key=lambda widths: abs(deviation(widths)))
    found = {**start, "block_out_channels": list(near)}
    reached = whole / macs(on_meta(found), inputs)
    if abs(factor / reached - 1) > TOLERANCE:
        steps = ", ".join(map(str, _units(start)))
        raise ValueError(
            f"factor {factor:g}: the nearest is {reached:.3g}, with block_out_channels {list(near)}; "
            f"they go in steps of {steps}, for norms and attention heads."
        )
    return found


def on_meta(config: Mapping[str, Any]) -> Any:
    """A network of shapes alone."""
    try:
        with torch.device("meta"):
            return UNet2DConditionModel.from_config(_plain(config))
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"config: diffusers cannot make a UNet2DConditionModel of it: {error}") from None


def macs_fraction(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> float:
    """Multiply-accumulates of a call of the student's network, as a share of the teacher's."""
    theirs, ours = (macs(on_meta(config), example_inputs(config)) for config in (teacher, student))
    return ours / theirs


def _plain(config: Mapping[str, Any]) -> Config:
    """Without what diffusers notes for itself: names that its `_use_default_values` lists would lose what they are set to."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _meta(value: Any) -> Any:
    return value[:1].to("meta") if isinstance(value, Tensor) and value.ndim else value


def _config_of(unet: Any) -> Config:
    known: Any = UNet2DConditionModel  # diffusers' own types know nothing of its config
    if not isinstance(unet, known):
        raise ValueError(f"unet: expects a UNet2DConditionModel; got {type(unet).__name__}.")
    if unet.device.type == "meta":
        raise ValueError("unet: has no weights (it is on the meta device); smaller_config takes a config alone.")
    if getattr(unet, "peft_config", None):
        names = ", ".join(unet.peft_config)
        raise ValueError(f"unet: has adapters ({names}); expects a network without, so fuse and unload them first.")
    return _plain(unet.config)


def max_layers(config: Mapping[str, Any]) -> int:
    layers = config["layers_per_block"]
    return layers if isinstance(layers, int) else max(layers)


def _units(config: Mapping[str, Any]) -> list[int]:
    """Of each level, what its width must be a multiple of: the groups of norms and, where it attends, the heads."""
    heads, levels = config["attention_head_dim"], len(config["block_out_channels"])
    heads = [heads] * levels if isinstance(heads, int) else list(heads)
    attends = ["CrossAttn" in down or "CrossAttn" in up for down, up in _levels(config)]
    attends[-1] |= "CrossAttn" in (config["mid_block_type"] or "")
    groups = config["norm_num_groups"] or 1
    return [math.lcm(groups, count if attending else 1) for count, attending in zip(heads, attends, strict=True)]


def _levels(config: Mapping[str, Any]) -> zip[tuple[str, str]]:
    return zip(config["down_block_types"], reversed(config["up_block_types"]), strict=True)


def _width(width: int, unit: int, share: float) -> int:
    """The multiple of `unit` that is nearest to a share of `width`."""
    return min(max(math.floor(width * share / unit + 0.5), 1) * unit, width)


def _sizes(unet: Any) -> dict[str, int]:
    """What the multiply-accumulates of each layer are in proportion to: channels in times out, dimensions of all heads."""
    sizes: dict[str, int] = {}
    for path, module in unet.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            sizes[path] = module.weight[..., 0, 0].numel() if module.weight.ndim > 2 else module.weight.numel()
        elif isinstance(module, Attention):
            sizes[path] = module.to_q.out_features
    return sizes


def _shares(config: Mapping[str, Any]) -> list[float]:
    """Ascending, one share for each of the configs that `narrower_config` tells apart."""
    widths, units = config["block_out_channels"], _units(config)
    steps = {(k + 0.5) * unit / width for width, unit in zip(widths, units, strict=True) for k in range(1, width // unit + 1)}
    bounds = [0.0, *sorted(step for step in steps if step < 1), 1.0]
    return [*((low + high) / 2 for low, high in pairwise(bounds)), 1.0]


def _beside(widths: tuple[int, ...], config: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Widths of which one level is a step wider or narrower, or two neighbours are, one each way."""
    most, units = config["block_out_channels"], _units(config)
    one = [
        [step * units[k] if k == level else 0 for k in range(len(widths))] for level in range(len(widths)) for step in (1, -1)
    ]
    two = [[a + b for a, b in zip(up, down, strict=True)] for up, down in zip(one[::2], one[3::2], strict=False)]
    moves = [*one, *two, *([-step for step in move] for move in two)]
    moved = [tuple(width + step for width, step in zip(widths, move, strict=True)) for move in moves]
    return [m for m in moved if all(unit <= n <= full for n, unit, full in zip(m, units, most, strict=True))]


def _start(unet: Any, config: Config, importance: Importance) -> tuple[Any, list[str]]:
    student = on_meta(config)
    weights, fresh = transfer(unet, on_meta(_at_widths_of(unet.config, config)), student, importance)
    if fresh:
        generated = UNet2DConditionModel.from_config(_plain(config)).state_dict()
        weights.update({name: generated[name].to(unet.device, unet.dtype) for name in fresh})
    student.load_state_dict(weights, assign=True)
    return student.train(unet.training).requires_grad_(True), fresh


def _at_widths_of(teacher: Mapping[str, Any], config: Config) -> Config:
    """The student's config at the widths, heads and groups of the teacher's outer levels."""
    levels = len(config["block_out_channels"])

    def outer(name: str) -> list[int]:
        theirs, ours = teacher[name], config[name]
        theirs = [theirs] * len(teacher["block_out_channels"]) if isinstance(theirs, int) else list(theirs)
        ours = [ours] * levels if isinstance(ours, int) else list(ours)
        return theirs[:levels] + ours[len(theirs) :]

    same = {name: outer(name) for name in ("block_out_channels", "attention_head_dim")}
    return {**config, **same, **{name: teacher[name] for name in ("norm_num_groups", "time_embedding_dim")}}
