"""`gendistill plan`: what sampling takes of memory, before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gendistill.samplers import StudentSpec
from gendistill.samplers.memory import CUDA_CONTEXT, PLACEMENTS, Needs, Networks, fastest_that_fits

GPUS = (6, 8, 12, 24)  # GiB
DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class SamplingPlan:
    """What a model needs, and which placement fits into how much memory.

    Attributes:
        needs: as predicted, in bytes; `size`: height and width.
        fits: by GiB of a GPU, or of what is free: the name of the fastest placement, None where none fits.
    """

    model: str
    size: tuple[int, int]
    batch: int
    guided: bool
    dtype: str
    needs: Needs
    fits: dict[float, str | None]

    def to_dict(self) -> dict[str, Any]:
        peaks = {placement.name: self.needs.peak(placement) for placement in PLACEMENTS}
        return {**asdict(self), "needs": asdict(self.needs), "peak": peaks}

    def table(self) -> Table:
        """A row a placement, a column an amount of memory."""
        height, width = self.size
        table = Table(
            title=f"{self.model}, {self.batch} of {width}x{height}, {self.dtype}{', guided' if self.guided else ''}: predicted",
            title_justify="left",
            box=SIMPLE_HEAD,
        )
        table.add_column("placement")
        table.add_column("peak, GiB", justify="right")
        for free in self.fits:
            table.add_column(f"{free:g} GiB", justify="center")
        table.add_column("what it is")
        for placement in PLACEMENTS:
            marks = [
                "fastest" if name == placement.name else "" if not _fits(self.needs.peak(placement), free) else "fits"
                for free, name in self.fits.items()
            ]
            table.add_row(placement.name, f"{self.needs.peak(placement) / 2**30:.2f}", *marks, placement.told)
        return table

    def sentences(self) -> Iterator[str]:
        own = f"{CUDA_CONTEXT / 2**30:.1f} GiB for the GPU's own libraries"
        yield f"predicted from shapes, with {own}; nobody has measured it on a GPU here"
        for free, name in self.fits.items():
            if name is None:
                yield f"{free:g} GiB: nothing fits; fewer pictures at once, a smaller size or a tiny decoder take less"


def plan_sampling(
    model: str,
    *,
    size: str | None = None,
    batch: int = 1,
    guided: bool = False,
    dtype: str = "float16",
    memory: float | None = None,
) -> SamplingPlan:
    """What drawing `batch` pictures together takes.

    Args:
        model: a local model or student, with its weights or without, or the name of an architecture.
        size: WIDTHxHEIGHT; the model's own where None.
        memory: GiB that are free; those of `GPUS` where None.

    Raises:
        ValueError: there is no such model, or a size that its decoder cannot make.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype}: takes one of {', '.join(DTYPES)}")
    spec = StudentSpec.load(Path(model))
    networks = Networks.of(spec.teacher, config=spec.teacher_config) if spec and spec.lora else Networks.of(model)
    wanted = _size(size, networks)
    needs = networks.needs(wanted, batch, guided=guided, dtype=getattr(torch, dtype), cpu=False)
    fits: dict[float, str | None] = {}
    for free in (memory,) if memory is not None else GPUS:
        try:
            fits[float(free)] = fastest_that_fits(needs, int(free * 2**30) - CUDA_CONTEXT).name
        except ValueError:
            fits[float(free)] = None
    return SamplingPlan(model, wanted, batch, guided, dtype, needs, fits)


def _fits(peak: int, free: float) -> bool:
    return peak <= free * 2**30 - CUDA_CONTEXT


def _size(text: str | None, networks: Networks) -> tuple[int, int]:
    factor = networks.factor
    if text is None:
        edge = int(networks.network.config.sample_size) * factor
        return edge, edge
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None or any(int(edge) < factor or int(edge) % factor for edge in found.groups()):
        raise ValueError(f"size {text}: takes WIDTHxHEIGHT in multiples of {factor} pixels")
    return int(found[2]), int(found[1])
