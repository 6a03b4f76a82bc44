"""Functions for all studies: train and evaluate arms and seeds with the command line, and print figures with intervals."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table
from scipy import stats

Run = tuple[str, int]
Figures = Mapping[str, float]
Result = TypeVar("Result")


def run_all(runs: Sequence[Run], at_once: int, measure: Callable[[str, int], Result]) -> dict[Run, Result]:
    """The results of `measure` for all runs, `at_once` in parallel."""
    with ThreadPoolExecutor(at_once) as pool:
        return dict(zip(runs, pool.map(lambda run: measure(*run), runs), strict=True))


def folder_of(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def distilled(config: str, folder: Path, settings: Mapping[str, object]) -> float:
    """Start or resume a run of `gendistill distill`, with its log next to the run folder; returns the time in minutes."""
    pairs = [f"--set={key}={value}" for key, value in settings.items()]
    resume = ["--resume"] if (folder / "checkpoints").exists() else []
    return called(
        ["distill", "--config", config, "--out", str(folder), *pairs, *resume], folder.with_name(f"{folder.name}.log")
    )


def evaluated(
    student: Path, steps: Sequence[int], quantization: str | None = None, out: Path | None = None
) -> dict[str, list[dict[str, float]]]:
    """The results of `gendistill evaluate` for a student, cached in its folder or in `out`."""
    folder = out or student
    file = folder / "evaluation.json"
    if not file.exists():
        command = ["evaluate", str(student), "--caption", "subcategory", "--steps", ",".join(map(str, steps))]
        command += [] if quantization is None else ["--quantization", quantization]
        called([*command, "--out", str(folder)], student.parent / "evaluation.log")
    evaluation: dict[str, list[dict[str, float]]] = json.loads(file.read_text())
    return evaluation


def called(command: Sequence[str], log: Path) -> float:
    """Run the command line of this environment with one thread; returns the time in minutes."""
    started = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("a") as output:
        done = subprocess.run([sys.executable, "-m", "gendistill.cli", *command], stdout=output, stderr=output, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed, see {log}")
    return (time.monotonic() - started) / 60


def print_table(results: Mapping[Run, Mapping[int, Figures]], figures: Sequence[str], caption: str) -> None:
    """Print means over seeds with 95 % intervals (Student's t), and paired differences from the first arm.

    Args:
        results: figures by arm and seed, then by network calls.
        figures: the columns; the first is the figure of the paired differences.
    """
    names, seeds = (list(dict.fromkeys(part)) for part in zip(*results, strict=True))
    table = Table("arm", "calls", *figures, f"{figures[0]}, minus {names[0]}", caption=caption)
    for name in names:
        for calls in results[name, seeds[0]]:
            rows = [results[name, seed][calls] for seed in seeds]
            baseline = [results[names[0], seed][calls][figures[0]] for seed in seeds]
            differences = [row[figures[0]] - value for row, value in zip(rows, baseline, strict=True)]
            cells = [interval([row[figure] for row in rows]) for figure in figures]
            table.add_row(name, str(calls), *cells, interval(differences) if name != names[0] else "")
    Console(width=160).print(table)


def interval(values: Sequence[float]) -> str:
    """Mean and half width of the 95 % interval."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{mean:.3f} ± {half:.3f}"
