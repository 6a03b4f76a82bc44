"""A sampler that stays within a device's memory by offloading."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import release_memory
from torch import Tensor

from gendistill.metrics.cost.measured_memory import available_memory, ran_out
from gendistill.samplers.few_step import FewStepSampler
from gendistill.samplers.offload.live_memory import bytes_of
from gendistill.samplers.offload.memory_model import PLACEMENTS, MetaNetworks, Needs, Placement
from gendistill.samplers.offload.placing import Placing, networks_of
from gendistill.samplers.spec import StudentSpec
from gendistill.samplers.tasks import Task


class PlacedSampler(FewStepSampler):
    """Samples the same images as a `FewStepSampler` within a memory limit.

    It samples in the fastest of `PLACEMENTS` whose predicted peak fits. After an out-of-memory error it continues in the next
    placement, and after the last one with half the batch size; finished images are not sampled again.

    Args:
        pipeline: a pipeline with all networks in the host's memory.
        device: the device for sampling.
        memory: memory limit on the device in bytes; None: the available memory.
        report: called with a sentence when the placement changes.

    Raises:
        ValueError: in sampling, if a single image fits in no placement.
    """

    def __init__(
        self,
        pipeline: Any,
        spec: StudentSpec | None = None,
        eta: float | None = None,
        *,
        device: str | torch.device,
        memory: float | None = None,
        report: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        super().__init__(pipeline, spec, eta)
        self._device = torch.device(device)
        self.memory = room_on(self._device, pipeline) if memory is None else memory
        self._placing, self._report = Placing(pipeline, device), report
        self._networks = MetaNetworks.like(pipeline)
        self._needs: dict[tuple[tuple[int, int], int, bool], Needs] = {}

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def placement(self) -> Placement | None:
        """The current placement; None before the first image."""
        return self._placing.placement

    def cold(self) -> FewStepSampler:
        self._encoded.clear()
        return self

    def _pipeline_of(self, task: Task, count: int, steps: int) -> Any:
        pipeline = super()._pipeline_of(task, count, steps)
        if task.controlnet is not None:
            self._placing.add("controlnet", task.controlnet)
        return pipeline

    def _generated(self, generate: Callable[[slice], Tensor], rows: slice, size: tuple[int, int], guided: bool) -> Tensor:
        self._fit(size, rows.stop - rows.start, guided)
        while True:
            try:
                return generate(rows)
            except (MemoryError, RuntimeError) as error:
                if not ran_out(error):
                    raise
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                # outside of the except clause, whose traceback keeps the tensors of the failed call
            self._encoded.to("cpu")
            release_memory()
            if (slower := self._next()) is not None:
                self._apply(slower, "out of memory")
            elif (count := rows.stop - rows.start) > 1:
                middle = rows.start + count // 2
                self._report(f"out of memory: batch size {math.ceil(count / 2)} from now on")
                halves = (slice(rows.start, middle), slice(middle, rows.stop))
                return torch.cat([self._generated(generate, half, size, guided).cpu() for half in halves])
            else:
                raise ValueError(
                    f"memory: one image of {size[1]}x{size[0]} does not fit in any placement ({reason}); a smaller size or "
                    "a tiny decoder (--method decoder) needs less"
                )

    def _fit(self, size: tuple[int, int], count: int, guided: bool) -> None:
        """Apply the first placement, from the current one on, that is predicted to fit; the last one if none is."""
        if (key := (size, count, guided)) not in self._needs:
            dtype, cpu = self.pipeline.dtype, self._device.type == "cpu"
            self._needs[key] = self._networks.needs(size, count, guided=guided, dtype=dtype, cpu=cpu)
        needs, first = self._needs[key], PLACEMENTS.index(self.placement) if self.placement else 0
        fitting = (candidate for candidate in PLACEMENTS[first:] if needs.peak(candidate) <= self.memory)
        if (placement := next(fitting, PLACEMENTS[-1])) != self.placement:
            self._apply(placement, f"{needs.peak(placement) / 2**30:.2f} GiB predicted")

    def _next(self) -> Placement | None:
        assert self.placement is not None
        following = PLACEMENTS[PLACEMENTS.index(self.placement) + 1 :]
        return following[0] if following else None

    def _apply(self, placement: Placement, reason: str) -> None:
        self._placing.apply(placement)
        self._report(f"placement {placement.name}: {reason}")


def room_on(device: torch.device, pipeline: Any) -> float:
    """Available bytes on a device for a pipeline that is in the host's memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return available_memory() + bytes_of(networks_of(pipeline).values())
