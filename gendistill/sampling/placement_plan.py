"""`gendistill plan`: predicted memory of sampling, before weights are loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gendistill.runtime.device import usable_dtype
from gendistill.samplers import StudentSpec
from gendistill.samplers.offload.memory_model import CUDA_CONTEXT, PLACEMENTS, MetaNetworks, Needs, fastest_that_fits
from gendistill.samplers.quantization.small_weights import KINDS, quantize_weights

GPUS = (6, 8, 12, 24)  # GiB


@dataclass(frozen=True)
class SamplingPlan:
    """The memory that a model needs, and the placements that fit into amounts of memory.

    Attributes:
        size: height and width.
        needs: predicted memory in bytes.
        fits: the fastest placement by GiB of a GPU or of free memory; None where no placement fits.
        quantization: quantization of the network's weights.
        fits_smaller: `fits` with other quantizations.
    """

    model: str
    size: tuple[int, int]
    batch: int
    guided: bool
    dtype: str
    quantization: str
    needs: Needs
    fits: dict[float, str | None]
    fits_smaller: dict[str, dict[float, str | None]]

    def to_dict(self) -> dict[str, Any]:
        peaks = {placement.name: self.needs.peak(placement) for placement in PLACEMENTS}
        return {**asdict(self), "needs": asdict(self.needs), "peak": peaks}

    def table(self) -> Table:
        """A table with one row per placement and one column per amount of memory."""
        height, width = self.size
        options = [
            self.dtype,
            *([self.quantization] if self.quantization != "none" else []),
            *(["guided"] if self.guided else []),
        ]
        table = Table(
            title=f"{self.model}, {self.batch} of {width}x{height}, {', '.join(options)}: predicted",
            title_justify="left",
            box=SIMPLE_HEAD,
        )
        table.add_column("placement")
        table.add_column("peak, GiB", justify="right")
        for free in self.fits:
            table.add_column(f"{free:g} GiB", justify="center")
        table.add_column("description")
        for placement in PLACEMENTS:
            peak = self.needs.peak(placement)
            marks = [
                "fastest" if name == placement.name else "fits" if peak <= free * 2**30 - CUDA_CONTEXT else ""
                for free, name in self.fits.items()
            ]
            table.add_row(placement.name, f"{peak / 2**30:.2f}", *marks, placement.in_diffusers)
        return table

    def sentences(self) -> Iterator[str]:
        context = f"{CUDA_CONTEXT / 2**30:.1f} GiB for the libraries of the GPU"
        yield f"predicted from tensor shapes, including {context}; not measured on a GPU"
        for free, name in self.fits.items():
            if name is None:
                yield f"{free:g} GiB: nothing fits; smaller batches, a smaller size or a tiny decoder need less"
            faster = {kind: fits[free] for kind, fits in self.fits_smaller.items() if _order(fits[free]) < _order(name)}
            if faster:
                placements = ", ".join(f"--quantization {kind} fits {placement}" for kind, placement in faster.items())
                yield f"{free:g} GiB: {placements}; quantized weights change the images of a seed slightly"


def plan_sampling(
    model: str,
    *,
    size: str | None = None,
    batch: int = 1,
    guided: bool = False,
    dtype: str = "float16",
    quantization: str = "none",
    memory: float | None = None,
) -> SamplingPlan:
    """The memory of sampling a batch of `batch` images.

    Args:
        model: a local model or student, with or without weights, or the name of an architecture.
        size: WIDTHxHEIGHT; the model's default size where None.
        quantization: quantization of the network's weights: `none` or one of `KINDS`.
        memory: free memory in GiB; the amounts of `GPUS` where None.

    Raises:
        ValueError: the model does not exist, or its decoder does not support the size.
    """
    if quantization not in ("none", *KINDS):
        raise ValueError(f"quantization {quantization}: expects none, {' or '.join(KINDS)}")
    spec = StudentSpec.load(Path(model))

    def open_networks() -> MetaNetworks:
        if spec is not None and spec.lora:
            return MetaNetworks.from_configs(spec.teacher, config=spec.teacher_config)
        return MetaNetworks.from_configs(model)

    def needs_of(networks: MetaNetworks, kind: str) -> Needs:
        if kind != "none":
            quantize_weights(networks.network, kind)
        return networks.needs(image_size, batch, guided=guided, dtype=usable_dtype(dtype), cpu=False)

    networks = open_networks()
    image_size = _size(size, networks)
    free = [float(memory)] if memory is not None else [float(gib) for gib in GPUS]
    needs = needs_of(networks, quantization)
    fits = _fits_into(needs, free)
    slow = quantization == "none" and any(_order(name) for name in fits.values())
    smaller = {kind: _fits_into(needs_of(open_networks(), kind), free) for kind in KINDS} if slow else {}
    return SamplingPlan(model, image_size, batch, guided, dtype, quantization, needs, fits, smaller)


def _fits_into(needs: Needs, free: list[float]) -> dict[float, str | None]:
    """The name of the fastest placement that fits into each amount of memory in GiB."""
    fastest = {gib: fastest_that_fits(needs, gib * 2**30 - CUDA_CONTEXT) for gib in free}
    return {gib: None if placement is None else placement.name for gib, placement in fastest.items()}


def _order(name: str | None) -> int:
    """The rank of a placement by speed: 0 for the fastest; None has the last rank."""
    return next((number for number, placement in enumerate(PLACEMENTS) if placement.name == name), len(PLACEMENTS))


def _size(text: str | None, networks: MetaNetworks) -> tuple[int, int]:
    factor = networks.factor
    if text is None:
        return networks.size
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or any(int(edge) < factor or int(edge) % factor for edge in match.groups()):
        raise ValueError(f"size {text}: expects WIDTHxHEIGHT in multiples of {factor} pixels")
    return int(match[2]), int(match[1])
