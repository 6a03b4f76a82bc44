"""What an image costs: time, network calls, operations, memory, energy; of anything that generates images."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import release_memory
from pydantic import ConfigDict, TypeAdapter

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
MAX_MEMORY_FRACTION = 0.9  # of what is free, what a batch may be expected to take


@dataclass(frozen=True)
class BatchCost:
    """Sampling so many images together.

    Attributes:
        seconds: of one call, the median over the repeats; `seconds_p90`: the 90th percentile.
        memory: the peak over the repeats.
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
    """The part of one component, in one image sampled by itself.

    Attributes:
        parameters: by dtype ("float32"), of the whole module that is loaded.
        parameter_bytes: what they take.
        calls: how often the module was called; `samples`: the rows of all these calls, a doubled batch counting two.
        flops: floating-point operations (a multiply-add is two) as `flops_by_component` counts them.
        seconds: its part of `Costs.split_seconds`.
    """

    parameters: dict[str, int]
    parameter_bytes: int
    calls: int
    samples: int
    flops: int
    seconds: float


@dataclass(frozen=True)
class Costs:
    """What images cost, as plain types: `to_dict` may be written as JSON.

    Attributes:
        device: what it was measured on, in words.
        setting: how images were sampled (steps, guidance, ...), as the caller says.
        network_calls: samples that went through the network for one image: a guided step is two.
        batches: by batch size, ascending; the first is one image.
        components: by name.
        rest_flops: outside of the components; `rest_seconds`: the overhead outside of them.
        split_seconds: of one image with the components watched, the sum of their seconds and of `rest_seconds`; on a GPU
            more than the latency, as it is waited for at every component.
        energy: None where it was not measured.
        notes: what was not measured, and why, in sentences.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

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
        """Seconds of one image by itself, the median."""
        return self.batches[0].seconds

    @property
    def images_per_second(self) -> float:
        """At the batch size that is best."""
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
        """Of one image by itself."""
        return self.batches[0].memory

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as JSON takes them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Costs:
        """What `to_dict` made.

        Raises:
            ValueError: a field is missing, unknown or of another kind.
        """
        return TypeAdapter(cls).validate_python(fields)


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
    """Measure `generate(count)`, which samples that many images together.

    Time and memory are measured with nothing watched; then one image is sampled a few times with the components watched,
    once more with its operations counted, and the largest batch for as long as its energy takes to measure.

    Args:
        components: the parts by name; all on one device, which is waited for before the clock is read.
        network: the name of the part whose calls are the network calls.
        batch_sizes: one image is always measured. The list is left, with a note, where memory runs out: where a GPU
            says so, or before a batch that a CPU's memory would not hold, as nobody would catch that.
        warmup: calls at each batch size that do not count.
        repeats: calls at each batch size that do, and more until they took `min_seconds`: a median of few short calls is
            that of whatever else the machine did.
        energy_seconds: how long to sample for the energy; 0 measures none.
        country: where the electricity is from (ISO 3166, three letters); None is the world's average.
        progress: called with a number of images whenever as many are sampled, `images_generated` in all.

    Raises:
        ValueError: a batch size, `warmup` or `repeats` is below 1; `network` is no component.
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

    untold = images_generated(batch_sizes, warmup, repeats)

    def generate_counted(count: int) -> None:
        nonlocal untold
        generate(count)
        synchronise(device)
        if progress is not None and (told := min(count, untold)):
            untold -= told
            progress(told)

    notes: list[str] = []
    batches = _batches(generate_counted, sorted({1, *batch_sizes}), warmup, repeats, min_seconds, device, notes)
    split = _split(lambda: generate_counted(1), components, device)
    flops = flops_by_component(lambda: generate_counted(1), components)
    if progress is not None and untold:  # of batches that did not fit
        progress(untold)
        untold = 0
    energy, why = None, "energy: not measured, it was not asked for."
    if energy_seconds > 0:
        energy, why = measure_energy(generate_counted, batches[-1].batch_size, seconds=energy_seconds, country=country)
    notes += [why] if why else []
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
    """How many images `measure` tells its `progress`."""
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
        if batches and (why := _too_large(size, batches[-1], device)):
            notes.append(f"batch_sizes: stopped before {size}, {why}.")
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
    """The seconds of `sample(size)` after `warmup` calls that do not count, and the memory's peak over the repeats."""
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
    """Why a batch of that size must not be tried on a CPU: the system ends a process that takes too much."""
    expected, available = before.memory.working * size / before.batch_size, available_memory()
    if device.type != "cpu" or expected <= MAX_MEMORY_FRACTION * available:
        return ""
    return f"which would take about {expected / 2**30:.1f} GiB of the {available / 2**30:.1f} GiB that are free"


def _split(generate: Callable[[], object], components: Mapping[str, Component], device: torch.device) -> Charges:
    """The run in the middle of a few, as it is: medians of the parts would not sum to the whole."""
    runs = [seconds_by_component(generate, components, device) for _ in range(SPLIT_RUNS)]
    return sorted(runs, key=lambda run: sum(run.spent.values()))[len(runs) // 2]


def _device(components: Mapping[str, Component]) -> torch.device:
    parameters = (parameter for component in components.values() for parameter in component.module.parameters())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def describe(device: torch.device) -> str:
    """A device in words: "cpu (AMD Ryzen 7, 8 threads)", "cuda (NVIDIA H100)"."""
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
