"""`gendistill plan`: what sampling takes of memory, before anything is loaded."""

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
    """What a model needs, and which placement fits into how much memory.

    Attributes:
        needs: as predicted, in bytes; `size`: height and width.
        fits: by GiB of a GPU, or of what is free: the name of the fastest placement, None where none fits.
        quantization: what the network's weights are kept as; `fits_smaller`: as `fits`, where they were kept as others.
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
        """A row a placement, a column an amount of memory."""
        height, width = self.size
        kept = [self.dtype, *([self.quantization] if self.quantization != "none" else []), *(["guided"] if self.guided else [])]
        table = Table(
            title=f"{self.model}, {self.batch} of {width}x{height}, {', '.join(kept)}: predicted",
            title_justify="left",
            box=SIMPLE_HEAD,
        )
        table.add_column("placement")
        table.add_column("peak, GiB", justify="right")
        for free in self.fits:
            table.add_column(f"{free:g} GiB", justify="center")
        table.add_column("what it is")
        for placement in PLACEMENTS:
            peak = self.needs.peak(placement)
            marks = [
                "fastest" if name == placement.name else "fits" if peak <= free * 2**30 - CUDA_CONTEXT else ""
                for free, name in self.fits.items()
            ]
            table.add_row(placement.name, f"{peak / 2**30:.2f}", *marks, placement.in_diffusers)
        return table

    def sentences(self) -> Iterator[str]:
        own = f"{CUDA_CONTEXT / 2**30:.1f} GiB for the GPU's own libraries"
        yield f"predicted from shapes, with {own}; nobody has measured it on a GPU here"
        for free, name in self.fits.items():
            if name is None:
                yield f"{free:g} GiB: nothing fits; fewer images at once, a smaller size or a tiny decoder take less"
            faster = {kind: fits[free] for kind, fits in self.fits_smaller.items() if _order(fits[free]) < _order(name)}
            if faster:
                told = ", ".join(f"--quantization {kind} fits {placement}" for kind, placement in faster.items())
                yield f"{free:g} GiB: {told}; smaller weights sample a seed a little otherwise"


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
    """What sampling `batch` images together takes.

    Args:
        model: a local model or student, with its weights or without, or the name of an architecture.
        size: WIDTHxHEIGHT; the model's own where None.
        quantization: what the network's weights are kept as: `none` or one of `KINDS`.
        memory: GiB that are free; those of `GPUS` where None.

    Raises:
        ValueError: there is no such model, or a size that its decoder cannot make.
    """
    if quantization not in ("none", *KINDS):
        raise ValueError(f"quantization {quantization}: expects none, {' or '.join(KINDS)}")
    spec = StudentSpec.load(Path(model))

    def opened() -> MetaNetworks:
        if spec is not None and spec.lora:
            return MetaNetworks.from_configs(spec.teacher, config=spec.teacher_config)
        return MetaNetworks.from_configs(model)

    def needs_of(networks: MetaNetworks, kind: str) -> Needs:
        if kind != "none":
            quantize_weights(networks.network, kind)
        return networks.needs(wanted, batch, guided=guided, dtype=usable_dtype(dtype), cpu=False)

    networks = opened()
    wanted = _size(size, networks)
    free = [float(memory)] if memory is not None else [float(of) for of in GPUS]
    needs = needs_of(networks, quantization)
    fits = _fits_into(needs, free)
    slow = quantization == "none" and any(_order(name) for name in fits.values())
    smaller = {kind: _fits_into(needs_of(opened(), kind), free) for kind in KINDS} if slow else {}
    return SamplingPlan(model, wanted, batch, guided, dtype, quantization, needs, fits, smaller)


def _fits_into(needs: Needs, free: list[float]) -> dict[float, str | None]:
    """The name of the fastest placement that fits into each of some GiB."""
    fastest = {of: fastest_that_fits(needs, of * 2**30 - CUDA_CONTEXT) for of in free}
    return {of: None if placement is None else placement.name for of, placement in fastest.items()}


def _order(name: str | None) -> int:
    """Of a placement: 0 of the fastest, more of each that follows, most of none."""
    return next((number for number, of in enumerate(PLACEMENTS) if of.name == name), len(PLACEMENTS))


def _size(text: str | None, networks: MetaNetworks) -> tuple[int, int]:
    factor = networks.factor
    if text is None:
        return networks.size
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None or any(int(edge) < factor or int(edge) % factor for edge in found.groups()):
        raise ValueError(f"size {text}: expects WIDTHxHEIGHT in multiples of {factor} pixels")
    return int(found[2]), int(found[1])
