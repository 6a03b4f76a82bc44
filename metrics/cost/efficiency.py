"""The costs of generating an image: time, network calls, operations, memory and energy."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import release_memory

from gendistill.metrics.cost.components import (
    REST,
    Charges,
    Component,
    flops_by_component,
    parameters_by_dtype,
    seconds_by_component,
    seconds_of,
    synchronise,
)
from gendistill.metrics.cost.energy import Energy, measure_energy
from gendistill.metrics.cost.measured_memory import PeakMemory, available_memory, peak_memory, ran_out

SPLIT_RUNS = 3
MAX_REPEATS = 100
MAX_MEMORY_FRACTION = 0.9  # of the available memory, for the expected use of a batch


@dataclass(frozen=True)
class BatchCost:
    """Costs of generating a batch.

    Attributes:
        seconds: median over the repeats; `seconds_p90`: 90th percentile.
        memory: peak over the repeats.
    """

    batch_size: int
    seconds: float
    seconds_p90: float
    memory: PeakMemory

    @property
    def images_per_second(self) -> float:
        return self.batch_size / self.seconds


@dataclass(frozen=True)
class ComponentCost:
    """Costs of one component for a batch of one image.

    Attributes:
        parameters: number of parameters of the loaded module, by dtype ("float32").
        parameter_bytes: size of the parameters.
        calls: number of calls; `samples`: number of rows of all these calls, two per image for a doubled batch.
        flops: floating-point operations, see `flops_by_component`.
        seconds: the component's part of `Costs.split_seconds`.
    """

    parameters: dict[str, int]
    parameter_bytes: int
    calls: int
    samples: int
    flops: int
    seconds: float


@dataclass(frozen=True)
class Costs:
    """The costs of a model's images; `to_dict` returns JSON types.

    Attributes:
        device: description of the device.
        setting: the sampling settings (steps, guidance, ...), from the caller.
        network_calls: samples through the network for one image: a guided step is two.
        batches: costs by ascending batch size; the first is one image.
        components: costs by name of the component.
        rest_flops, rest_seconds: operations and seconds outside of the components.
        split_seconds: seconds of one image while the components are measured, the sum of their seconds and of
            `rest_seconds`; on a GPU more than the latency, because of the synchronisation at every component.
        energy: None if not measured.
        notes: one sentence for each quantity that was not measured, with the reason.
    """

    device: str
    setting: dict[str, str | int | float]
    network_calls: int
    batches: tuple[BatchCost, ...]
    components: dict[str, ComponentCost]
    rest_flops: int
    rest_seconds: float
    split_seconds: float
    energy: Energy | None
    notes: tuple[str, ...]
    versions: dict[str, str]

    @property
    def latency(self) -> float:
        """Median seconds of a batch of one image."""
        return self.batches[0].seconds

    @property
    def images_per_second(self) -> float:
        """Images per second at the best batch size."""
        return max(batch.images_per_second for batch in self.batches)

    @property
    def flops(self) -> int:
        """Floating-point operations of one image."""
        return self.rest_flops + sum(component.flops for component in self.components.values())

    @property
    def parameters(self) -> int:
        return sum(sum(component.parameters.values()) for component in self.components.values())

    @property
    def parameter_bytes(self) -> int:
        return sum(component.parameter_bytes for component in self.components.values())

    @property
    def peak_memory(self) -> PeakMemory:
        """Peak memory of a batch of one image."""
        return self.batches[0].memory

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return dataclasses.asdict(self)


def measure(
    generate: Callable[[int], object],
    components: Mapping[str, Component],
    *,
    network: str,
    batch_sizes: Sequence[int] = (1, 4, 16),
    warmup: int = 1,
    repeats: int = 5,
    min_seconds: float = 0.0,
    energy_seconds: float = 5.0,
    country: str | None = None,
    setting: Mapping[str, str | int | float] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Costs:
    """Measure the costs of `generate(count)`, which generates a batch of `count` images.

    Time and memory are measured first, without wrapped components. Then one image is generated a few times to measure the
    time of the components and once to count the operations, and the largest batch to measure the energy.

    Args:
        components: the components by name, all on one device.
        network: name of the component whose samples are the network calls.
        batch_sizes: batch sizes; 1 is always measured. Larger ones are left out, with a note, after an out-of-memory error,
            or on a CPU if the expected use exceeds the available memory, as the system would end the process.
        warmup: unmeasured calls at each batch size.
        repeats: minimum number of measured calls at each batch size; there are more until they took `min_seconds`, as the
            median of few short calls depends on other processes.
        energy_seconds: duration of the energy measurement; 0: no measurement.
        country: country of the electricity (ISO 3166, three letters); None: the world's average.
        progress: called with the number of images after each call, `images_generated` in total.

    Raises:
        ValueError: a batch size, `warmup` or `repeats` is below 1, or `network` is not the name of a component.
    """
    if min([warmup, repeats, *batch_sizes]) < 1:
        raise ValueError(
            f"batch_sizes, warmup, repeats: got {list(batch_sizes)}, {warmup} and {repeats}, expects 1 or more of each."
        )
    if network not in components:
        raise ValueError(
            f"network: got {network!r}, expects one of the components: {', '.join(components) or 'there are none'}."
        )
    device = _device(components)

    unreported = images_generated(batch_sizes, warmup, repeats)

    def generate_counted(count: int) -> None:
        nonlocal unreported
        generate(count)
        synchronise(device)
        if progress is not None and (reported := min(count, unreported)):
            unreported -= reported
            progress(reported)

    notes: list[str] = []
    batches = _batches(generate_counted, sorted({1, *batch_sizes}), warmup, repeats, min_seconds, device, notes)
    split = _split(lambda: generate_counted(1), components, device)
    flops = flops_by_component(lambda: generate_counted(1), components)
    if progress is not None and unreported:  # of batches that did not fit
        progress(unreported)
        unreported = 0
    energy, reason = None, "energy: not measured, as it was not requested."
    if energy_seconds > 0:
        energy, reason = measure_energy(generate_counted, batches[-1].batch_size, seconds=energy_seconds, country=country)
    notes += [reason] if reason else []
    return Costs(
        device=describe(device),
        setting=dict(setting or {}),
        network_calls=split.samples[network],
        batches=tuple(batches),
        components={
            name: ComponentCost(
                parameters=parameters_by_dtype(component.module),
                parameter_bytes=sum(parameter.nbytes for parameter in component.module.parameters()),
                calls=split.calls[name],
                samples=split.samples[name],
                flops=flops[name],
                seconds=split.spent[name],
            )
            for name, component in components.items()
        },
        rest_flops=flops[REST],
        rest_seconds=split.spent[REST],
        split_seconds=sum(split.spent.values()),
        energy=energy,
        notes=tuple(notes),
        versions={"torch": torch.__version__, "python": platform.python_version()},
    )


def images_generated(batch_sizes: Sequence[int], warmup: int = 1, repeats: int = 5) -> int:
    """Total number of images that `measure` reports to `progress`."""
    return sum({1, *batch_sizes}) * (warmup + repeats) + SPLIT_RUNS + 1


def _batches(
    generate: Callable[[int], None],
    sizes: list[int],
    warmup: int,
    repeats: int,
    min_seconds: float,
    device: torch.device,
    notes: list[str],
) -> list[BatchCost]:
    batches: list[BatchCost] = []
    for size in sizes:
        if batches and (reason := _too_large(size, batches[-1], device)):
            notes.append(f"batch_sizes: stopped before {size}, {reason}.")
            break
        try:
            timed = time_batch(generate, size, warmup=warmup, repeats=repeats, min_seconds=min_seconds, device=device)
            batches.append(timed)
        except (MemoryError, RuntimeError) as error:
            if not batches or not ran_out(error):
                raise
            notes.append(f"batch_sizes: stopped at {size}, which does not fit in the memory of the {device.type} device.")
            break
    if batches[-1].batch_size < sizes[-1]:
        release_memory()
    return batches


def time_batch(
    generate: Callable[[int], object],
    size: int,
    *,
    warmup: int = 1,
    repeats: int = 5,
    min_seconds: float = 0.0,
    device: torch.device | str = "cpu",
) -> BatchCost:
    """Costs of `generate(size)` over at least `repeats` calls, after `warmup` unmeasured calls."""
    device = torch.device(device)
    seconds: list[float] = []
    for _ in range(warmup):
        generate(size)

    def repeat() -> None:
        while len(seconds) < repeats or (sum(seconds) < min_seconds and len(seconds) < MAX_REPEATS):
            seconds.append(seconds_of(lambda: generate(size), device))

    memory = peak_memory(repeat, device)
    return BatchCost(size, float(np.median(seconds)), float(np.quantile(seconds, 0.9)), memory)


def _too_large(size: int, before: BatchCost, device: torch.device) -> str:
    """Why a batch of `size` must not be tried on a CPU, where the system ends a process that uses too much memory."""
    expected, available = before.memory.working * size / before.batch_size, available_memory()
    if device.type != "cpu" or expected <= MAX_MEMORY_FRACTION * available:
        return ""
    return f"which would need about {expected / 2**30:.1f} GiB of the {available / 2**30:.1f} GiB that are free"


def _split(generate: Callable[[], object], components: Mapping[str, Component], device: torch.device) -> Charges:
    """The median run of a few: the medians of the components would not sum to the total."""
    runs = [seconds_by_component(generate, components, device) for _ in range(SPLIT_RUNS)]
    return sorted(runs, key=lambda run: sum(run.spent.values()))[len(runs) // 2]


def _device(components: Mapping[str, Component]) -> torch.device:
    parameters = (parameter for component in components.values() for parameter in component.module.parameters())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def describe(device: torch.device) -> str:
    """Description of a device: "cpu (AMD Ryzen 7, 8 threads)", "cuda (NVIDIA H100)"."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    if device.type != "cpu":
        return f"{device.type} ({platform.machine()})"
    threads = torch.get_num_threads()
    return f"cpu ({_cpu_name()}, {threads} thread{'s' if threads > 1 else ''})"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
