"""How much memory a piece of work takes at its peak, in a process that has done other work before."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size

SAMPLED_EVERY = 0.002  # seconds
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class PeakMemory:
    """Bytes in use before a piece of work and at its peak; how they were measured, in words.

    What is in use before holds the model's weights, Python, and whatever else the process has loaded: two models in one
    process compare by `working`, or by their weights and that.
    """

    before: int
    peak: int
    method: str

    @property
    def working(self) -> int:
        """Bytes that the work took besides what was there."""
        return self.peak - self.before


def peak_memory(work: Callable[[], object], device: torch.device) -> PeakMemory:
    """Do the work and tell its peak: of the device's memory on a GPU, of the process's resident memory on a CPU.

    On CUDA: what torch has allocated (`torch.cuda.max_memory_allocated`). On Linux: the kernel's own high-water mark,
    which is reset before (5 to /proc/self/clear_refs, see proc(5)) and misses nothing; `ru_maxrss` as it stood before is
    lost. Elsewhere: by looking every 2 ms, which may miss a peak that is shorter.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return PeakMemory(before, torch.cuda.max_memory_allocated(device), "CUDA, allocated by torch")
    if device.type == "mps":
        torch.mps.synchronize()
        return _sampled(work, torch.mps.current_allocated_memory, "MPS, allocated by torch, sampled every 2 ms")
    _give_back_freed()
    if _reset_high_water():
        before = _status_bytes("VmRSS")
        work()
        return PeakMemory(before, max(before, _status_bytes("VmHWM")), "resident memory, the kernel's high-water mark")
    return _sampled(work, lambda: psutil.Process().memory_info().rss, "resident memory, sampled every 2 ms")


def ran_out(error: Exception) -> bool:
    """Whether an error says that memory ended, on any device."""
    words = ("out of memory", "not enough memory")  # on a CPU and on MPS torch has no class of its own for it
    told = isinstance(error, RuntimeError) and any(few in str(error).lower() for few in words)
    return told or isinstance(error, MemoryError) or should_reduce_batch_size(error)


def available_memory() -> int:
    """Bytes of the machine's memory, or of the container's, that can still be had."""
    machine, group = psutil.virtual_memory().available, _group_available()
    return machine if group is None else min(machine, group)


def _sampled(work: Callable[[], object], in_use: Callable[[], int], method: str) -> PeakMemory:
    before = in_use()
    peak = before
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLED_EVERY):
            peak = max(peak, in_use())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return PeakMemory(before, max(peak, in_use()), method)


def _reset_high_water() -> bool:
    """Whether the kernel took the mark back to what is in use now; some containers do not let it."""
    try:
        _CLEAR.write_text("5")
        return _status_bytes("VmHWM") <= _status_bytes("VmRSS") * 1.05
    except (OSError, ValueError):
        return False


def _status_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{_STATUS}: has no {name}.")
    return int(found[1]) * 1024


def _give_back_freed() -> None:
    """Return freed memory to the system where the C library can (glibc): it would stand for the next work's."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _group_available() -> int | None:
    """What the container's limit (cgroup v2) leaves; files that are kept in memory give way."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = int((folder / "memory.max").read_text()), int((folder / "memory.current").read_text())
        files = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no such group, or its limit is "max"
        return None
    return limit - used + (int(files[1]) if files else 0)
