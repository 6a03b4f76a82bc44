"""Energy and CO2 of generating images, measured by codecarbon if installed: offline, silent, without files."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

MISSING = "energy: not measured, the package codecarbon is not installed."


@dataclass(frozen=True)
class Energy:
    """Energy of one image.

    Attributes:
        watt_hours: energy of CPU, GPU and memory together.
        co2_grams: CO2-equivalent of the electricity, at the carbon intensity of the country.
        parts: watt-hours of "cpu", "gpu" and "ram".
        batch_size: images per call.
        seconds: duration of the measurement.
        method: description of codecarbon's method. Without a power meter it estimates the energy from the load of the CPU
            and the maximum power of such a CPU: right to an order of magnitude, not for comparing two machines.
    """

    watt_hours: float
    co2_grams: float
    parts: dict[str, float]
    batch_size: int
    seconds: float
    method: str


def measure_energy(
    generate: Callable[[int], object], batch_size: int, *, seconds: float = 5.0, country: str | None = None
) -> tuple[Energy | None, str]:
    """Generate batches for at least `seconds` and return the energy per image; if it cannot be measured, (None, reason).

    Nothing is sent, requested, written or printed. GPUs are measured by their counters, and a CPU by RAPL if it can be read;
    only this process's part of the machine's load is counted, if it can be separated.

    Args:
        country: three letters (ISO 3166), for the CO2 of its electricity; None: the world's average.
    """
    try:
        from codecarbon import OfflineEmissionsTracker
    except ImportError:
        return None, MISSING
    with _silent():
        try:
            tracker = OfflineEmissionsTracker(
                country_iso_code=country,
                tracking_mode="process",
                measure_power_secs=1,
                allow_multiple_runs=True,  # otherwise it writes a lock file and replaces the signal handlers
                save_to_file=False,
                save_to_api=False,
                save_to_logger=False,
                emissions_endpoint=None,
                log_level="critical",
            )
            tracker.start()
        except Exception as error:  # a failure of codecarbon must not stop the measurement of the other costs
            return None, f"energy: not measured, codecarbon failed: {error}."
        try:
            images, end = 0, time.perf_counter() + seconds
            while images == 0 or time.perf_counter() < end:
                generate(batch_size)
                images += batch_size
        finally:
            tracker.stop()
    emissions = getattr(tracker, "final_emissions_data", None)
    if emissions is None or not emissions.energy_consumed > 0:
        return None, "energy: not measured, codecarbon can measure no device of this machine."
    return Energy(
        watt_hours=emissions.energy_consumed * 1000 / images,
        co2_grams=emissions.emissions * 1000 / images,
        parts={part: getattr(emissions, f"{part}_energy") * 1000 / images for part in ("cpu", "gpu", "ram")},
        batch_size=batch_size,
        seconds=emissions.duration,
        method=_method(tracker, emissions.country_name or "the world's average"),
    ), ""


def _method(tracker: Any, electricity: str) -> str:
    modes = [mode for part in getattr(tracker, "_hardware", []) if (mode := getattr(part, "_mode", None))]
    descriptions = {"cpu_load": "estimated from its load", "constant": "a constant", "intel_rapl": "measured by RAPL"}
    cpu = descriptions.get(modes[0], modes[0]) if modes else "unknown"
    return f"codecarbon; CPU: {cpu}; memory: estimated from its size; electricity: {electricity}"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Silence codecarbon, which warns and prints through a handler of its own logger, and restore both afterwards."""
    logger = logging.getLogger("codecarbon")
    disabled, level, handlers = logger.disabled, logger.level, list(logger.handlers)
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled, logger.handlers = disabled, handlers
        logger.setLevel(level)
