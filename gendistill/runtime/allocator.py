"""Settings of the C library's memory allocator."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # constants of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for new tensors; does nothing with other C libraries.

    By default glibc returns the memory of every large tensor to the system, which zeroes the pages for the next tensor: this
    takes up to a third of a teacher's sampling time on a CPU. Only for processes that run gendistill alone.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        for setting in (TRIM_THRESHOLD, MMAP_THRESHOLD):
            libc.mallopt(setting, 2**31 - 1)
