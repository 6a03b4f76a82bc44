"""What the parts of a model cost: each is watched while it works, and what passes meanwhile is charged to it."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

REST = "rest"  # what passes while no component is at work: the solver, the tokenizer, Python


@dataclass(frozen=True)
class Component:
    """A part of a model that is watched: its module, and the method by which it is called.

    A module that is not called by itself but by a method, as a VAE by `decode`, is watched at that method.
    """

    module: nn.Module
    method: str = "forward"


@dataclass
class Charges:
    """What was charged to each component, and to `REST`; and how often each was called and with how many samples."""

    spent: dict[str, float]
    calls: dict[str, int] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)


@contextlib.contextmanager
def charged(components: Mapping[str, Component], reading: Callable[[], float]) -> Iterator[Charges]:
    """Charge what `reading` advances by to the component at work, by wrapped methods that are put back afterwards.

    Of components inside one another the innermost is charged, so that the parts sum to the whole. Samples are the rows
    of the first tensor that a component is called with: guidance by a doubled batch counts two an image.

    Args:
        reading: something that only grows, as a clock or a counter.
    """
    charges = Charges(dict.fromkeys([*components, REST], 0.0), dict.fromkeys(components, 0), dict.fromkeys(components, 0))
    at_work = [REST]
    last = reading()

    def charge() -> None:
        nonlocal last
        now = reading()
        charges.spent[at_work[-1]] += now - last
        last = now

    def enter(name: str, given: tuple[Any, ...]) -> None:
        charge()
        at_work.append(name)
        charges.calls[name] += 1
        charges.samples[name] += next((len(t) for t in given if isinstance(t, Tensor) and t.ndim > 0), 1)

    def leave() -> None:
        charge()
        at_work.pop()

    with contextlib.ExitStack() as hooks:
        for name, component in components.items():
            hooks.enter_context(_watched(component, name, enter, leave))
        yield charges
        charge()


@contextlib.contextmanager
def _watched(
    component: Component, name: str, enter: Callable[[str, tuple[Any, ...]], None], leave: Callable[[], None]
) -> Iterator[None]:
    module, method = component.module, component.method
    usual, own = getattr(module, method), method in vars(module)

    def watched(*args: Any, **kwargs: Any) -> Any:
        enter(name, (*args, *kwargs.values()))
        try:
            return usual(*args, **kwargs)
        finally:
            leave()

    setattr(module, method, watched)
    try:
        yield
    finally:
        if own:
            setattr(module, method, usual)
        else:
            delattr(module, method)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one `work()`, all that it gave the device included."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def seconds_by_component(generate: Callable[[], object], components: Mapping[str, Component], device: torch.device) -> Charges:
    """Wall-clock seconds of one `generate()` by component.

    The device is waited for wherever a component begins or ends, without which its seconds would be charged to whoever
    waits next; the whole therefore takes a little longer than it does unwatched.
    """

    def clock() -> float:
        synchronise(device)
        return time.perf_counter()

    with charged(components, clock) as charges:
        generate()
        synchronise(device)
    return charges


def flops_by_component(generate: Callable[[], object], components: Mapping[str, Component]) -> dict[str, int]:
    """Floating-point operations of one `generate()` by component, and those of the rest; a multiply-add is two.

    Counted are matrix products, convolutions and attention (a causal one in full), by torch's `FlopCounterMode`; and the
    fused attention of CPUs and of Apple's GPUs, which that leaves out. Not counted: normalisation, activations, softmax,
    resampling, anything element by element, recurrent layers, and kernels of other packages or of `torch.compile`.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # torch's own encoder layers as one kernel would count as nothing
    try:
        with FlopCounterMode(display=False, custom_mapping=_fused_attention()) as counter:
            with charged(components, counter.get_total_flops) as charges:
                generate()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return {name: int(flops) for name, flops in charges.spent.items()}


def _fused_attention() -> dict[Any, Any]:
    """Of shapes (B, heads, L, E), (B, heads, S, E), (B, heads, S, E'): 2 B heads L S (E + E')."""
    names = (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_attention_math_for_mps",
        "_scaled_dot_product_fused_attention_overrideable",
    )
    kernels = [getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)]
    return dict.fromkeys(kernels, lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value))


def parameters_by_dtype(module: nn.Module) -> dict[str, int]:
    """Number of parameters by dtype ("float32"), as they are stored; those that are shared count once."""
    counts: Counter[str] = Counter()
    for parameter in module.parameters():
        counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return dict(counts)
