"""Networks in one half precision (float16 or bfloat16) under autocast to the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def in_own_precision(dtype: torch.dtype, device_type: str) -> Iterator[None]:
    """Disable autocast for a network in one half precision under autocast to the other, as layers do not accept both."""
    mixes = dtype in (torch.float16, torch.bfloat16) and torch.amp.is_autocast_available(device_type)  # not on meta
    if mixes and torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) != dtype:
        with torch.autocast(device_type, enabled=False):
            yield
    else:
        yield
