"""Costs of the components of a model: time or operations during a component's call are charged to it."""

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

REST = "rest"  # everything outside of the components: the solver, the tokenizer, Python


@dataclass(frozen=True)
class Component:
    """A part of a model whose costs are measured: its module, and the method by which it is called.

    A VAE, for example, is called by `decode` instead of `forward`.
    """

    module: nn.Module
    method: str = "forward"


@dataclass
class Charges:
    """The charges of each component and of `REST`, and the number of calls and of samples of each component."""

    spent: dict[str, float]
    calls: dict[str, int] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)


@contextlib.contextmanager
def charged(components: Mapping[str, Component], reading: Callable[[], float]) -> Iterator[Charges]:
    """Charge the increase of `reading` to the running component, by temporarily wrapped methods.

    Of nested components the innermost is charged, so that the charges sum to the total. Samples are the rows of a call's
    first tensor: guidance with a doubled batch counts two per image.

    Args:
        reading: returns a value that only grows, such as a clock or a counter.
    """
    charges = Charges(dict.fromkeys([*components, REST], 0.0), dict.fromkeys(components, 0), dict.fromkeys(components, 0))
    running = [REST]
    last = reading()

    def charge() -> None:
        nonlocal last
        now = reading()
        charges.spent[running[-1]] += now - last
        last = now

    def enter(name: str, arguments: tuple[Any, ...]) -> None:
        charge()
        running.append(name)
        charges.calls[name] += 1
        charges.samples[name] += next((len(t) for t in arguments if isinstance(t, Tensor) and t.ndim > 0), 1)

    def leave() -> None:
        charge()
        running.pop()

    with contextlib.ExitStack() as wrappers:
        for name, component in components.items():
            wrappers.enter_context(_wrapped(component, name, enter, leave))
        yield charges
        charge()


@contextlib.contextmanager
def _wrapped(
    component: Component, name: str, enter: Callable[[str, tuple[Any, ...]], None], leave: Callable[[], None]
) -> Iterator[None]:
    module, method = component.module, component.method
    original, own = getattr(module, method), method in vars(module)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        enter(name, (*args, *kwargs.values()))
        try:
            return original(*args, **kwargs)
        finally:
            leave()

    setattr(module, method, wrapped)
    try:
        yield
    finally:
        if own:
            setattr(module, method, original)
        else:
            delattr(module, method)


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one `work()`, including its work on the device."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def seconds_by_component(generate: Callable[[], object], components: Mapping[str, Component], device: torch.device) -> Charges:
    """Wall-clock seconds of one `generate()` by component.

    The device is synchronised at the start and the end of each component, as its time would otherwise be charged to the next
    synchronisation; the total is therefore a little longer than without measurement.
    """

    def clock() -> float:
        synchronise(device)
        return time.perf_counter()

    with charged(components, clock) as charges:
        generate()
        synchronise(device)
    return charges


def flops_by_component(generate: Callable[[], object], components: Mapping[str, Component]) -> dict[str, int]:
    """Floating-point operations of one `generate()` by component and of `REST`; a multiply-add is two operations.

    Counted are matrix products, convolutions and attention (causal attention in full) by torch's `FlopCounterMode`, and the
    fused attention of CPUs and of Apple's GPUs, which `FlopCounterMode` leaves out. Not counted are normalisation,
    activations, softmax, resampling, elementwise operations, recurrent layers, and kernels of other packages or of
    `torch.compile`.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused kernel of torch's encoder layers would not be counted
    try:
        with FlopCounterMode(display=False, custom_mapping=_fused_attention()) as counter:
            with charged(components, counter.get_total_flops) as charges:
                generate()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return {name: int(flops) for name, flops in charges.spent.items()}


def _fused_attention() -> dict[Any, Any]:
    """2 B heads L S (E + E') operations for shapes (B, heads, L, E), (B, heads, S, E) and (B, heads, S, E')."""
    names = (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_attention_math_for_mps",
        "_scaled_dot_product_fused_attention_overrideable",
    )
    kernels = [getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)]
    return dict.fromkeys(kernels, lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value))


def parameters_by_dtype(module: nn.Module) -> dict[str, int]:
    """Number of parameters by their stored dtype ("float32"); a shared parameter counts once."""
    counts: Counter[str] = Counter()
    for parameter in module.parameters():
        counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return dict(counts)
