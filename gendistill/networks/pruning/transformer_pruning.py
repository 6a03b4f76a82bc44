"""A smaller diffusion transformer, initialised with its teacher's weights: fewer blocks and, where needed, fewer heads.

The student's architecture is a plain diffusers config, which plain diffusers can open. Blocks whose weights have the same
shapes are interchangeable, so that the config of a student is decided by its size alone, and its weights by importance.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from gendistill.networks.counting import macs_by_module
from gendistill.networks.pruning.transformer_widths import Slices, has_fewer_heads, with_heads

TOLERANCE = 0.1  # relative error of the multiply-accumulates
STACKS = {  # a network's lists of blocks in the order of its forward pass, and the entries of configs with their numbers
    "transformer_blocks": ("num_layers",),
    "joint_transformer_blocks": ("num_mmdit_layers",),
    "single_transformer_blocks": ("num_single_layers", "num_single_dit_layers"),
    "layers": ("num_layers", "n_layers"),
}
FIRST_KEPT = ("DiTTransformer2DModel",)  # the last layer reads the embedding in the first block
DUAL = "dual_attention_layers"  # the numbers of the blocks of Stable Diffusion 3.5 with a second attention
Config = dict[str, Any]
Signature = tuple[tuple[str, torch.Size], ...]
Predict = Callable[[], Tensor]


@dataclass(frozen=True)
class Segment:
    """Consecutive blocks of one stack whose weights have the same shapes."""

    stack: str
    entry: str
    count: int


@dataclass(frozen=True)
class PrunedTransformer:
    """A student, the names of its weights with random initialisation, and the teacher's blocks that its blocks are from.

    Attributes:
        kept: path of a block of the student to the number of the teacher's block in the same stack; None for a new block.
    """

    network: Any
    fresh: list[str]
    kept: dict[str, int | None]


def stacks_of(network: Any) -> dict[str, str]:
    """The network's lists of blocks that its config can shorten: attribute to the config's entry; empty for other networks."""
    lists = {name: getattr(network, name, None) for name in STACKS}
    return {
        name: entry
        for name, blocks in lists.items()
        if isinstance(blocks, nn.ModuleList)
        for entry in STACKS[name]
        if network.config.get(entry) == len(blocks)
    }


def segments_of(network: Any) -> list[Segment]:
    """The segments of a network in the order of its forward pass."""
    segments: list[Segment] = []
    for stack, entry in stacks_of(network).items():
        previous = None
        for block in getattr(network, stack):
            signature = _signature(block)
            if signature == previous:
                segments[-1] = Segment(stack, entry, segments[-1].count + 1)
            else:
                segments.append(Segment(stack, entry, 1))
            previous = signature
    return segments


def fewer_blocks_config(network: Any, fraction: float = 0.5) -> Config:
    """The config with a fraction of the blocks of every segment, at least one of each.

    Raises:
        ValueError: no segment has a block that can be removed.
    """
    segments = segments_of(network)
    counts = [max(1, math.floor(segment.count * fraction + 0.5)) for segment in segments]
    if counts == [segment.count for segment in segments]:
        raise ValueError(f"compress.blocks: a {type(network).__name__} of single blocks; expects one with two blocks of a kind")
    return _with_counts(network, segments, counts)


def smaller_config(network: Any, factor: float, inputs: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Config:
    """The config with 1 / `factor` of the multiply-accumulates, within 10 %: with fewer blocks, and with fewer heads where
    fewer blocks alone cannot meet it.

    Args:
        inputs: keyword arguments of the `forward` of a network with a config, on the meta device.

    Raises:
        ValueError: no config comes near enough; the message states the nearest possible factor.
    """
    if not 1 < factor < math.inf:
        raise ValueError(f"factor {factor:g}: expects more than 1")
    teacher, segments = dict(network.config), segments_of(network)
    full = _macs_of(type(network), teacher, inputs)
    total = sum(full.values())
    of_block = [_macs_of_block(full, segments, number) for number in range(len(segments))]

    def deviation(counts: tuple[int, ...]) -> float:
        removed = sum((s.count - n) * cost for s, n, cost in zip(segments, counts, of_block, strict=True))
        return math.log((total - removed) * factor / total)

    ladder = sorted(_ladder(segments), key=deviation)
    candidates = [(deviation(counts), _with_counts(network, segments, counts)) for counts in ladder]
    best = min(candidates, key=lambda candidate: abs(candidate[0]))
    for above, config in candidates:
        if _within(best[0]) or not has_fewer_heads(network):
            break
        if above > 0:
            narrow = _fewer_heads(config, lambda c: math.log(_total(type(network), c, inputs) * factor / total))
            best = min(best, narrow, key=lambda candidate: abs(candidate[0]))
    if not _within(best[0]):
        narrows = has_fewer_heads(network)
        entries = [*stacks_of(network).values(), *(["num_attention_heads"] if narrows else [])]
        sizes = ", ".join(f"{name} {best[1][name]}" for name in entries)
        reason = "" if narrows else f"; the config of a {type(network).__name__} allows fewer blocks, but not fewer heads"
        raise ValueError(f"factor {factor:g}: the nearest is {factor / math.exp(best[0]):.3g}, with {sizes}{reason}")
    return best[1]


def matching_config(network: Any, config: Mapping[str, Any], predict: Predict) -> PrunedTransformer:
    """A network of a user-defined config, initialised with the most important blocks and heads of `network`.

    Args:
        config: entries that differ from the teacher's config, or a complete config.
        predict: runs `network` on data and returns its prediction, from which importance is measured.
    """
    network_class: Any = type(network)
    known = inspect.signature(network_class.__init__).parameters
    for name in config:
        if name not in known and not name.startswith("_"):
            near = difflib.get_close_matches(name, list(known), 1)
            nearest = f" (the nearest is {near[0]})" if near else ""
            raise ValueError(f"config: a {network_class.__name__} has no {name}{nearest}")
    student = _without_weights(network_class, {**network.config, **config})
    scores = importance(network, predict) if _is_smaller(student, network) else {}
    kept = kept_blocks(network, on_meta(network_class, with_heads(student.config, network.config)), scores)
    full, slices = network.state_dict(), Slices(network, student.config, predict)
    weights = {}
    for name, weight in student.state_dict().items():
        teacher_name = _teacher_name(name, kept)
        if teacher_name in full and (sliced := slices.sliced(teacher_name, full[teacher_name], weight.shape)) is not None:
            weights[name] = sliced
    fresh = [name for name in student.state_dict() if name not in weights]
    if fresh:
        random = network_class.from_config(_plain(student.config)).state_dict()
        weights.update({name: random[name].to(network.device, network.dtype) for name in fresh})
    student.load_state_dict(weights, assign=True)
    student = student.to(network.device).train(network.training).requires_grad_(True)
    return PrunedTransformer(student, fresh, kept)


@torch.no_grad()
def importance(network: Any, predict: Predict) -> dict[str, list[float]]:
    """The importance of every block by stack: the relative squared error of the prediction without the block.

    Kim et al. 2023, "BK-SDM", section 3.1 measure the removal of one block at a time by the generated images.
    """
    complete = predict().float()
    scale = complete.square().mean().clamp(min=1e-30)
    scores: dict[str, list[float]] = {}
    for stack in stacks_of(network):
        for block in getattr(network, stack):
            handle = block.register_forward_hook(_identity, with_kwargs=True)
            try:
                error = (predict().float() - complete).square().mean() / scale
            finally:
                handle.remove()
            scores.setdefault(stack, []).append(float(error))
        if type(network).__name__ in FIRST_KEPT:
            scores[stack][0] = 1 + sum(scores[stack])
    return scores


def kept_blocks(teacher: Any, student: Any, scores: Mapping[str, Sequence[float]]) -> dict[str, int | None]:
    """The teacher's block for each block of the student, which has the teacher's widths: the most important ones in their
    order, of equal shapes; None where the student has more blocks than the teacher.

    Args:
        scores: importance of the teacher's blocks by stack; without it, blocks are kept from the first on.
    """
    kept: dict[str, int | None] = {}
    for stack in stacks_of(student):
        wanted, present = ([_signature(block) for block in getattr(network, stack, ())] for network in (student, teacher))
        values = scores.get(stack) or [0.0] * len(present)
        # best[j]: number of matched blocks, their importance, and the teacher's blocks, among the first j of the teacher
        best: list[tuple[int, float, tuple[int | None, ...]]] = [(0, 0.0, ())] * (len(present) + 1)
        for signature in wanted:
            row = [(best[0][0], best[0][1], (*best[0][2], None))]
            for j, other in enumerate(present):
                found, value, path = best[j]
                matched = [(found + 1, value + values[j], (*path, j))] if other == signature else []
                new = (best[j + 1][0], best[j + 1][1], (*best[j + 1][2], None))
                row.append(max([row[-1], new, *matched], key=lambda candidate: candidate[:2]))
            best = row
        kept.update({f"{stack}.{k}": j for k, j in enumerate(best[-1][2])})
    return kept


def teacher_ends(network: Any, kept: Mapping[str, int | None]) -> dict[str, str]:
    """For each kept block of the student, the teacher's block whose output corresponds to its output.

    It is the last block before the next one that was kept, as the student's block computes what the removed ones did, too.
    """
    ends = {}
    for stack in stacks_of(network):
        names = [name for name in kept if name.rpartition(".")[0] == stack and kept[name] is not None]
        starts = [kept[name] or 0 for name in names]
        following = [*starts[1:], len(getattr(network, stack))]
        ends.update({f"{stack}.{end - 1}": name for name, end in zip(names, following, strict=True)})
    return ends


def on_meta(network_class: Any, config: Mapping[str, Any]) -> Any:
    """A network on the meta device: shapes without values."""
    return _built(network_class, config, torch.device("meta"))


def _without_weights(network_class: Any, config: Mapping[str, Any]) -> Any:
    """A network with parameters on the meta device, and the values of buffers that no file holds, such as positions."""
    return _built(network_class, config, init_empty_weights(include_buffers=False))


def _built(network_class: Any, config: Mapping[str, Any], context: AbstractContextManager[Any]) -> Any:
    try:
        with context:
            return network_class.from_config(_plain(config))
    except (ValueError, TypeError, IndexError, ZeroDivisionError, RuntimeError) as error:
        raise ValueError(f"config: diffusers cannot build a {network_class.__name__} from it: {error}") from None


def _plain(config: Mapping[str, Any]) -> Config:
    """The config without diffusers' private entries: entries listed in `_use_default_values` would be reset to defaults."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _identity(_block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    """In place of a block's output, its inputs: the hidden states, and those of the prompt where the block returns both."""
    hidden = named.get("hidden_states", arguments[0] if arguments else None)
    if isinstance(output, Tensor):
        return hidden
    prompt = named.get("encoder_hidden_states", arguments[1] if len(arguments) > 1 else None)
    return (None if output[0] is None else prompt, hidden)


def _signature(block: nn.Module) -> Signature:
    return tuple((name, weight.shape) for name, weight in block.state_dict().items())


def _is_smaller(student: Any, teacher: Any) -> bool:
    return any(student.config[entry] < len(getattr(teacher, stack)) for stack, entry in stacks_of(teacher).items())


def _with_counts(network: Any, segments: Sequence[Segment], counts: Sequence[int]) -> Config:
    """The network's config with so many blocks in each segment."""
    config = _plain(network.config)
    for entry in {segment.entry for segment in segments}:
        config[entry] = sum(n for segment, n in zip(segments, counts, strict=True) if segment.entry == entry)
    if config.get(DUAL):
        numbers, start, place = list[int](), 0, 0
        for segment, count in zip(segments, counts, strict=True):
            if segment.stack == "transformer_blocks":
                numbers += range(place, place + count) if start in config[DUAL] else ()
                start, place = start + segment.count, place + count
        config[DUAL] = numbers
    return config


def _ladder(segments: Sequence[Segment]) -> Iterator[tuple[int, ...]]:
    """The distinct numbers of blocks of every segment, each segment with about the same fraction of its blocks."""
    steps = {(k + 0.5) / segment.count for segment in segments for k in range(segment.count)}
    fractions = [0.0, *sorted(step for step in steps if step < 1), 1.0]
    seen = set()
    for fraction in fractions:
        counts = tuple(max(1, math.floor(segment.count * fraction + 0.5)) for segment in segments)
        if counts not in seen:
            seen.add(counts)
            yield counts


def _macs_of(network_class: Any, config: Mapping[str, Any], inputs: Callable[..., Mapping[str, Any]]) -> dict[str, int]:
    return macs_by_module(on_meta(network_class, config), inputs(config))


def _total(network_class: Any, config: Mapping[str, Any], inputs: Callable[..., Mapping[str, Any]]) -> int:
    return sum(_macs_of(network_class, config, inputs).values())


def _macs_of_block(full: Mapping[str, int], segments: Sequence[Segment], number: int) -> int:
    """Multiply-accumulates of the first block of a segment."""
    segment = segments[number]
    start = sum(earlier.count for earlier in segments[:number] if earlier.stack == segment.stack)
    prefix = f"{segment.stack}.{start}"
    return sum(count for path, count in full.items() if path == prefix or path.startswith(f"{prefix}."))


def _within(deviation: float) -> bool:
    return abs(math.exp(deviation) - 1) <= TOLERANCE


def _fewer_heads(config: Config, deviation: Callable[[Config], float]) -> tuple[float, Config]:
    """The config with as many heads as come nearest, and its deviation; multiply-accumulates grow with the heads."""
    at = cache(lambda heads: deviation(with_heads(config, {**config, "num_attention_heads": heads})))
    low, high = 1, config["num_attention_heads"]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle) > 0 else (middle, high)
    heads = min((low, high), key=lambda count: abs(at(count)))
    return at(heads), with_heads(config, {**config, "num_attention_heads": heads})


def _teacher_name(name: str, kept: Mapping[str, int | None]) -> str:
    """The name of the teacher's weight for a weight of the student; empty where the student's block is a new one."""
    stack, _, rest = name.partition(".")
    number, _, inner = rest.partition(".")
    if f"{stack}.{number}" not in kept:
        return name
    block = kept[f"{stack}.{number}"]
    return "" if block is None else f"{stack}.{block}.{inner}"
