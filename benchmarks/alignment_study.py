"""Consistency, latent alignment and both on tiny-sd, with equal training time, several seeds and intervals.

    python benchmarks/alignment_study.py --minutes 4 --seeds 0,1,2 --out runs/alignment-study

The time for generating the teacher's trajectories is subtracted from the training time of the arms that use them. Each run has
one thread, `--at-once` runs are parallel. The study can be resumed: it keeps trained and measured runs.
"""

import argparse
import json
from pathlib import Path

from study import distilled, evaluated, folder_of, print_table, run_all

BOTH = {"method": "consistency", "align.weight": 1}
ARMS: dict[str, dict[str, object]] = {
    "consistency": {"method": "consistency"},
    "alignment": {},
    "both": BOTH,
    "both, perceptual": {**BOTH, "align.match.perceptual": 0.1},
    "both, patches": {**BOTH, "align.distribution.patches": 1},
    "both, relations": {**BOTH, "align.semantic.distance": 1, "align.semantic.angle": 2},
    "both, adversarial": {**BOTH, "align.distribution.adversarial": "{30: 0, 40: 0.05}"},
}
GUIDANCE, CALLS = 2.0, (4, 1)
FIGURES = ("gap", "fd-emoji", "psnr", "feature_cosine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="for generating and training, with one thread")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default="consistency;alignment;both", help=f"one or more of {'; '.join(ARMS)}; or all")
    parser.add_argument("--trajectories", type=int, default=1024)
    parser.add_argument("--at-once", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/alignment-study"))
    args = parser.parse_args()
    names = list(ARMS) if args.arms == "all" else [name.strip() for name in args.arms.split(";")]
    args.out.mkdir(parents=True, exist_ok=True)
    generating = generate(args.out, args.trajectories)

    def measured(name: str, seed: int) -> dict[int, dict[str, float]]:
        folder = folder_of(args.out, name, seed)
        if not (folder / "student").exists():
            minutes = args.minutes - (0 if name == "consistency" else generating)
            limits = {"trainer.max_minutes": round(minutes, 2), "trainer.max_steps": 100_000}
            run(folder, {**ARMS[name], "seed": seed, **limits}, args.out, args.trajectories)
        return figures_of(folder / "student")

    runs = [(name, seed) for seed in map(int, args.seeds.split(",")) for name in names]
    results = run_all(runs, args.at_once, measured)
    print_table(results, FIGURES, f"{args.minutes:g} minutes, of which {generating:.1f} for trajectories in arms that use them")


def generate(out: Path, trajectories: int) -> float:
    """Encode the data and generate the trajectories into the cache of the study; returns the minutes of the generation."""
    file = out / "generating.json"
    if not file.exists():
        run(out / "encoding", {"method": "consistency", "trainer.max_steps": 1}, out, trajectories)
        plain = run(out / "once", {"method": "consistency", "trainer.max_steps": 1}, out, trajectories)
        generated = run(out / "generating", {"trainer.max_steps": 1}, out, trajectories)
        file.write_text(json.dumps({"minutes": generated - plain}))
    minutes: float = json.loads(file.read_text())["minutes"]
    return minutes


def run(folder: Path, settings: dict[str, object], out: Path, trajectories: int) -> float:
    common = {
        "guidance.scale": GUIDANCE,
        "align.trajectories": trajectories,
        "consistency.ema_decay": 0.95,
        "trainer.batch_size": 32,
        "trainer.validate_every": 1_000_000,
        "trainer.num_validation": 300,
        "data.cache": out / "cache",
    }
    return distilled("configs/alignment.yaml", folder, {**common, **settings})


def figures_of(student: Path) -> dict[int, dict[str, float]]:
    evaluation = evaluated(student, CALLS)
    scores = {row["network_calls"]: row["scores"] for row in evaluation["student"]}
    gaps = {gap["network_calls"]: gap["closed"] for gap in evaluation["gaps"]}
    return {calls: {**scores[calls], "gap": gaps[calls]} for calls in CALLS}


if __name__ == "__main__":
    main()
