"""Runs of `gendistill distill --budget` for a teacher, several times each: time, figures, and whether they ended in time.

    python benchmarks/budget_study.py assets/tiny-sd --budgets 10m,30m,60m --repeats 10 --out runs/budget-study

Every repetition has a training seed and a cache of its own, so that it encodes its data as a first run does. The study can be
resumed: it keeps finished runs.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from study import interval

from gendistill.settings.quantities import parse_seconds

EMOJI = ["--data", "assets/emoji/train-*.tar.gz", "--set", "data.caption=subcategory"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--budgets", default="10m,30m,60m")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--for", dest="purpose", default="any steps")
    parser.add_argument("--prompts", help="text file with prompts, instead of the emoji")
    parser.add_argument("--out", type=Path, default=Path("runs/budget-study"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data = ["--prompts", args.prompts] if args.prompts else EMOJI
    table = Table(
        "budget", "runs", "in time", "minutes, longest", "method", "calls", "distance", "gap closed", caption=args.teacher
    )
    for budget in args.budgets.split(","):
        runs = [once(args, budget, seed, data) for seed in range(args.repeats)]
        for row in rows(budget, runs):
            table.add_row(*row)
    Console(width=160).print(table)


def once(args: argparse.Namespace, budget: str, seed: int, data: list[str]) -> dict[str, Any]:
    """A run with a budget, in a process of its own: its seconds by the clock outside, its method and its figures by calls."""
    folder = args.out / f"{budget}-{seed}"
    file = folder.with_suffix(".json")
    if not file.exists():
        command = [
            sys.executable,
            "-m",
            "gendistill.cli",
            "distill",
            args.teacher,
            *data,
            "--budget",
            budget,
            "--for",
            args.purpose,
        ]
        command += ["--seed", str(seed), "--set", f"data.cache={folder}-cache", "--out", str(folder)]
        started = time.monotonic()
        with folder.with_suffix(".log").open("w") as log:
            done = subprocess.run(command, stdout=log, stderr=log)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed, see {folder.with_suffix('.log')}")
        file.write_text(json.dumps({"seconds": time.monotonic() - started, **figures(folder)}))
    measured: dict[str, Any] = json.loads(file.read_text())
    return measured


def figures(folder: Path) -> dict[str, Any]:
    """The method of a run, and distance and gap by calls; none where the time was over before the evaluation ended."""
    method = json.loads((folder / "student" / "gendistill.json").read_text())["method"]
    if not (folder / "evaluation.json").exists():
        return {"method": method, "distance": {}, "gap": {}}
    evaluation = json.loads((folder / "evaluation.json").read_text())
    distance = {row["network_calls"]: row["scores"][row["protocol"]["metric"]] for row in evaluation["student"]}
    return {"method": method, "distance": distance, "gap": {gap["network_calls"]: gap["closed"] for gap in evaluation["gaps"]}}


def rows(budget: str, runs: list[dict[str, Any]]) -> list[list[str]]:
    """A row for each number of calls, with means and 95 % intervals over the runs."""
    seconds = [run["seconds"] for run in runs]
    limit = parse_seconds("--budgets", budget)
    in_time = sum(each <= limit and bool(run["distance"]) for each, run in zip(seconds, runs, strict=True))
    first = [
        budget,
        str(len(runs)),
        f"{in_time} of {len(runs)}",
        f"{max(seconds) / 60:.2f}",
        ", ".join({run["method"] for run in runs}),
    ]
    calls = sorted({count for run in runs for count in run["distance"]}, key=int, reverse=True)
    found = []
    for number, count in enumerate(calls):
        values = [[run[name][count] for run in runs if count in run[name]] for name in ("distance", "gap")]
        found.append([*(first if number == 0 else [""] * 5), count, *(interval(each) if each else "" for each in values)])
    return found or [[*first, "", "", ""]]


if __name__ == "__main__":
    main()
