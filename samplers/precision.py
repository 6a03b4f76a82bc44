"""Networks in half precision under autocast to the other half precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def in_own_precision(dtype: torch.dtype, device_type: str) -> Iterator[None]:
    """Autocast off for a network in one half precision under autocast to the other: its layers take no mixture of both."""
    mixes = dtype in (torch.float16, torch.bfloat16) and torch.amp.is_autocast_available(device_type)  # not on meta
    if mixes and torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) != dtype:
        with torch.autocast(device_type, enabled=False):
            yield
    else:
        yield
