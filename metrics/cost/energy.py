"""Energy and CO2 of a piece of work, by codecarbon where it is installed: offline, in silence, without files."""

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
    """What one image takes.

    Attributes:
        watt_hours: of CPU, GPU and memory together.
        co2_grams: CO2-equivalent of the electricity, at the intensity of the country.
        parts: watt-hours by "cpu", "gpu" and "ram".
        batch_size: images that were sampled together.
        seconds: how long it was measured for.
        method: how codecarbon knows, in words. Where the machine has no meter it estimates, from the load of the CPU and
            what such a CPU may sample at most: good for an order of magnitude, not for comparing two machines.
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
    """Sample batches for at least `seconds` and tell the energy an image; (None, why) where it cannot be told.

    Nothing is sent, asked, written or printed. GPUs are measured by their own counters, and a CPU by RAPL where it can be
    read; of the machine's load only this process's part is counted, where it is a part that can be told.

    Args:
        country: three letters (ISO 3166), for the CO2 of its electricity; the world's average where None.
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
                allow_multiple_runs=True,  # otherwise it puts a lock in the temporary folder and takes over the signals
                save_to_file=False,
                save_to_api=False,
                save_to_logger=False,
                emissions_endpoint=None,
                log_level="critical",
            )
            tracker.start()
        except Exception as error:  # whatever it finds on a strange machine, images can still be sampled
            return None, f"energy: not measured, codecarbon failed: {error}."
        try:
            images, until = 0, time.perf_counter() + seconds
            while images == 0 or time.perf_counter() < until:
                generate(batch_size)
                images += batch_size
        finally:
            tracker.stop()
    used = getattr(tracker, "final_emissions_data", None)
    if used is None or not used.energy_consumed > 0:
        return None, "energy: not measured, codecarbon found nothing on this machine that it can measure."
    return Energy(
        watt_hours=used.energy_consumed * 1000 / images,
        co2_grams=used.emissions * 1000 / images,
        parts={part: getattr(used, f"{part}_energy") * 1000 / images for part in ("cpu", "gpu", "ram")},
        batch_size=batch_size,
        seconds=used.duration,
        method=_method(tracker, used.country_name or "the world's average"),
    ), ""


def _method(tracker: Any, electricity: str) -> str:
    modes = [mode for part in getattr(tracker, "_hardware", []) if (mode := getattr(part, "_mode", None))]
    how = {"cpu_load": "estimated from its load", "constant": "a constant", "intel_rapl": "measured by RAPL"}
    cpu = how.get(modes[0], modes[0]) if modes else "unknown"
    return f"codecarbon; CPU: {cpu}; memory: estimated from its size; electricity: {electricity}"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """codecarbon prints through a handler that it adds to its own logger, and warns; leave both as they were."""
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
