"""File permissions that hold for root too."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

OVERRIDES = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
VERSION = 0x20080522  # of the structures of capset(2)


@contextmanager
def permissions_that_hold() -> Iterator[None]:
    """Without root's right to read and write everything, in this thread and the threads that it starts."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    effective = data[0]
    data[0] = effective & ~OVERRIDES
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0] = effective
        assert libc.capset(header, data) == 0
