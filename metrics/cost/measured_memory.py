"""Peak memory of a piece of work, in a process that has done other work before."""

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
    """Bytes in use before a piece of work and at its peak, with a description of the method.

    `before` includes the model's weights, Python, and everything else that the process has loaded; so compare two models in one
    process by `working`, or by their weights plus `working`.
    """

    before: int
    peak: int
    method: str

    @property
    def working(self) -> int:
        """Bytes that the work needed in addition to `before`."""
        return self.peak - self.before


def peak_memory(work: Callable[[], object], device: torch.device) -> PeakMemory:
    """Run `work` and measure its peak memory: the device's memory on a GPU, the process's resident memory on a CPU.

    On CUDA it is the memory allocated by torch (`torch.cuda.max_memory_allocated`). On Linux it is the kernel's high-water
    mark, which is exact; it is reset first (5 to /proc/self/clear_refs, see proc(5)), which also resets `ru_maxrss`.
    Elsewhere memory is sampled every 2 ms, which may miss a shorter peak.
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
    """Whether an error is an out-of-memory error, on any device."""
    # on a CPU and on MPS torch has no error class for it; the last ones are of C++, of the system, and of oneDNN
    phrases = ("out of memory", "not enough memory", "bad_alloc", "cannot allocate memory", "could not create a memory")
    named = isinstance(error, RuntimeError | OSError) and any(phrase in str(error).lower() for phrase in phrases)
    return named or isinstance(error, MemoryError) or should_reduce_batch_size(error)


def available_memory() -> int:
    """Available bytes of the machine's memory, or of the container's if that is less."""
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
    """Reset the high-water mark to the memory in use; False if the container does not permit it."""
    try:
        _CLEAR.write_text("5")
        return _status_bytes("VmHWM") <= _status_bytes("VmRSS") * 1.05
    except (OSError, ValueError):
        return False


def _status_bytes(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if match is None:
        raise ValueError(f"{_STATUS}: has no {name}.")
    return int(match[1]) * 1024


def _give_back_freed() -> None:
    """Return freed memory to the system if the C library can (glibc), so that it is not counted as in use."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _group_available() -> int | None:
    """Available bytes within the container's limit (cgroup v2), including reclaimable file cache; None without a limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = int((folder / "memory.max").read_text()), int((folder / "memory.current").read_text())
        files = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no such group, or its limit is "max"
        return None
    return limit - used + (int(files[1]) if files else 0)
