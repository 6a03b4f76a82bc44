"""Consistency, latent alignment and both on tiny-sd: the same minutes, several training seeds, intervals.

    python scripts/alignment_study.py --minutes 4 --seeds 0,1,2 --out runs/alignment-study

Painting the teacher's ways counts: an arm that learns from them trains for as much less. Everything is done by one thread,
`--at-once` runs beside each other. What has been trained and measured stays: stopped, it goes on from there.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table
from scipy import stats

BOTH = {"method": "consistency", "align.weight": 1}
ARMS: dict[str, dict[str, object]] = {
    "consistency": {"method": "consistency"},
    "alignment": {},
    "both": BOTH,
    "both, perceptual": {**BOTH, "align.match.perceptual": 0.1},
    "both, patches": {**BOTH, "align.distribution.patches": 1},
    "both, relations": {**BOTH, "align.semantic.distance": 1, "align.semantic.angle": 2},
    "both, adversarial": {**BOTH, "align.distribution.adversarial": "{300: 0, 500: 0.05}"},
}
GUIDANCE, CALLS = 2.0, (4, 1)
FIGURES = ("gap", "fd-emoji", "psnr", "feature_cosine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="of painting and training, by one thread")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default="consistency;alignment;both", help=f"separated by ; of {'; '.join(ARMS)}; or all")
    parser.add_argument("--trajectories", type=int, default=1024)
    parser.add_argument("--at-once", type=int, default=2, help="runs beside each other, a thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/alignment-study"))
    given = parser.parse_args()
    names = list(ARMS) if given.arms == "all" else [name.strip() for name in given.arms.split(";")]
    given.out.mkdir(parents=True, exist_ok=True)
    painting = paint(given.out, given.trajectories)
    runs = [(name, seed) for seed in map(int, given.seeds.split(",")) for name in names]

    def measured(run: tuple[str, int]) -> dict[int, dict[str, float]]:
        name, seed = run
        left = given.minutes - (0 if name == "consistency" else painting)
        train(given.out, name, seed, given.trajectories, left)
        return evaluated(folder_of(given.out, name, seed) / "student")

    with ThreadPoolExecutor(given.at_once) as pool:
        found = dict(zip(runs, pool.map(measured, runs), strict=True))
    seeds = list(dict.fromkeys(seed for _, seed in runs))
    tell(names, seeds, found, f"{given.minutes:g} minutes, {painting:.1f} of them painting where ways are learned from")


def paint(out: Path, trajectories: int) -> float:
    """Encode the data, then paint the ways, into a cache of the study's own: the minutes of the painting."""
    kept = out / "painting.json"
    if not kept.exists():
        run(out / "encoding", {"method": "consistency", "trainer.max_steps": 1}, out, trajectories)
        plain = run(out / "once", {"method": "consistency", "trainer.max_steps": 1}, out, trajectories)
        painted = run(out / "painting", {"trainer.max_steps": 1}, out, trajectories)
        kept.write_text(json.dumps({"minutes": painted - plain}))
    minutes: float = json.loads(kept.read_text())["minutes"]
    return minutes


def train(out: Path, name: str, seed: int, trajectories: int, minutes: float) -> None:
    folder = folder_of(out, name, seed)
    if not (folder / "student").exists():
        settings = {**ARMS[name], "seed": seed, "trainer.max_minutes": round(minutes, 2), "trainer.max_steps": 100_000}
        run(folder, settings, out, trajectories)


def folder_of(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(', ', '-')}-{seed}"


def run(folder: Path, settings: dict[str, object], out: Path, trajectories: int) -> float:
    """One run of `gendistill distill`: the minutes that it took, and what it said in a log beside it."""
    common = {
        "guidance.scale": GUIDANCE,
        "align.trajectories": trajectories,
        "consistency.ema_decay": 0.95,
        "trainer.batch_size": 32,
        "trainer.validate_every": 1_000_000,
        "trainer.num_validation": 300,
        "data.cache": out / "cache",
    }
    pairs = [f"--set={key}={value}" for key, value in {**common, **settings}.items()]
    resumed = ["--resume"] if (folder / "checkpoints").exists() else []
    command = ["distill", "--config", "configs/alignment.yaml", "--out", str(folder), *pairs, *resumed]
    return called(command, folder.with_name(f"{folder.name}.log"))


def evaluated(student: Path) -> dict[int, dict[str, float]]:
    """Figures by network calls."""
    file = student / "evaluation.json"
    if not file.exists():
        called(
            ["evaluate", str(student), "--caption", "subcategory", "--steps", ",".join(map(str, CALLS))],
            student.parent / "evaluation.log",
        )
    told = json.loads(file.read_text())
    figures = {row["network_calls"]: row["scores"] for row in told["student"]}
    gaps = {gap["network_calls"]: gap["closed"] for gap in told["gaps"]}
    return {calls: {**figures[calls], "gap": gaps[calls]} for calls in CALLS}


def called(command: list[str], log: Path) -> float:
    """The command line of this environment, by one thread: the minutes that it took."""
    started = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("a") as told:
        done = subprocess.run([sys.executable, "-m", "gendistill.cli", *command], stdout=told, stderr=told, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed, see {log}")
    return (time.monotonic() - started) / 60


def tell(names: list[str], seeds: list[int], found: dict[tuple[str, int], dict[int, dict[str, float]]], caption: str) -> None:
    """Means over the seeds with 95 % intervals (Student's t), and how far each is from the first arm, seed by seed."""
    table = Table("arm", "calls", *FIGURES, f"gap, beside {names[0]}", caption=caption)
    for name in names:
        for calls in CALLS:
            ours = [found[name, seed][calls] for seed in seeds]
            beside = [found[name, seed][calls]["gap"] - found[names[0], seed][calls]["gap"] for seed in seeds]
            cells = [interval([of[figure] for of in ours]) for figure in FIGURES]
            table.add_row(name, str(calls), *cells, interval(beside) if name != names[0] else "")
    Console(width=160).print(table)


def interval(values: list[float]) -> str:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{mean:.3f} ± {half:.3f}"


if __name__ == "__main__":
    main()
