"""What the studies share: arms times seeds, trained and evaluated by the command line, told with intervals."""

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
Measured = TypeVar("Measured")


def all_of(runs: Sequence[Run], at_once: int, measured: Callable[[str, int], Measured]) -> dict[Run, Measured]:
    """What is measured of each run, `at_once` beside each other."""
    with ThreadPoolExecutor(at_once) as pool:
        return dict(zip(runs, pool.map(lambda run: measured(*run), runs), strict=True))


def folder_of(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def distilled(config: str, folder: Path, settings: Mapping[str, object]) -> float:
    """One run of `gendistill distill`, gone on with if it was begun, its log beside it: the minutes that it took."""
    pairs = [f"--set={key}={value}" for key, value in settings.items()]
    resumed = ["--resume"] if (folder / "checkpoints").exists() else []
    return called(
        ["distill", "--config", config, "--out", str(folder), *pairs, *resumed], folder.with_name(f"{folder.name}.log")
    )


def evaluated(
    student: Path, steps: Sequence[int], quantization: str | None = None, out: Path | None = None
) -> dict[str, list[dict[str, float]]]:
    """What `gendistill evaluate` writes of a student, to its own folder or another one, made once."""
    folder = out or student
    file = folder / "evaluation.json"
    if not file.exists():
        command = ["evaluate", str(student), "--caption", "subcategory", "--steps", ",".join(map(str, steps))]
        command += [] if quantization is None else ["--quantization", quantization]
        called([*command, "--out", str(folder)], student.parent / "evaluation.log")
    told: dict[str, list[dict[str, float]]] = json.loads(file.read_text())
    return told


def called(command: Sequence[str], log: Path) -> float:
    """The command line of this environment, by one thread: the minutes that it took."""
    started = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("a") as told:
        done = subprocess.run([sys.executable, "-m", "gendistill.cli", *command], stdout=told, stderr=told, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed, see {log}")
    return (time.monotonic() - started) / 60


def tell(found: Mapping[Run, Mapping[int, Figures]], figures: Sequence[str], caption: str) -> None:
    """Means over the seeds with 95 % intervals (Student's t), and how far each is from the first arm, seed by seed.

    Args:
        found: by arm and seed, then by network calls.
        figures: the columns; the first is the one that arms are told beside each other by.
    """
    names, seeds = (list(dict.fromkeys(part)) for part in zip(*found, strict=True))
    table = Table("arm", "calls", *figures, f"{figures[0]}, beside {names[0]}", caption=caption)
    for name in names:
        for calls in found[name, seeds[0]]:
            ours = [found[name, seed][calls] for seed in seeds]
            beside = [found[name, seed][calls][figures[0]] - found[names[0], seed][calls][figures[0]] for seed in seeds]
            cells = [interval([of[figure] for of in ours]) for figure in figures]
            table.add_row(name, str(calls), *cells, interval(beside) if name != names[0] else "")
    Console(width=160).print(table)


def interval(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{mean:.3f} ± {half:.3f}"
