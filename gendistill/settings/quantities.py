"""Times and amounts of memory as people write them: `90s`, `1.5h`, `12GB`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
BYTES = {"MB": 2**20, "MIB": 2**20, "GB": 2**30, "GIB": 2**30}  # as graphics cards are labelled: powers of 2
NUMBER_AND_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*")


def parse_seconds(name: str, text: str) -> float:
    """`90s`, `10m` or `1.5h` in seconds; raises ValueError, which names the option `name`, for anything else."""
    return _parsed(name, text, SECONDS, str.lower, "90s, 10m or 1.5h")


def parse_gib(name: str, text: str) -> float:
    """`12GB` or `800MB` in GiB; raises ValueError, which names the option `name`, for anything else."""
    return _parsed(name, text, {unit: size / 2**30 for unit, size in BYTES.items()}, str.upper, "12GB or 800MB")


def _parsed(name: str, text: str, units: dict[str, float], case: Callable[[str], str], examples: str) -> float:
    found = NUMBER_AND_UNIT.fullmatch(text)
    unit = case(found[2]) if found else ""
    if found is None or unit not in units or float(found[1]) <= 0:
        raise ValueError(f"{name} {text!r}: expects a number above 0 with its unit, such as {examples}")
    return float(found[1]) * units[unit]


def duration(seconds: float) -> str:
    """Seconds as `40 s`, `12 min` or `2 h 30 min`, rounded up, so that a budget of this length is long enough."""
    if seconds <= 90:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
