"""Consistency, latent alignment and both on tiny-sd: the same minutes, several training seeds, intervals.

    python benchmarks/alignment_study.py --minutes 4 --seeds 0,1,2 --out runs/alignment-study

Painting the teacher's ways counts: an arm that learns from them trains for as much less. Everything is done by one thread,
`--at-once` runs beside each other. What has been trained and measured stays: stopped, it goes on from there.
"""

import argparse
import json
from pathlib import Path

from study import all_of, distilled, evaluated, folder_of, tell

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
    parser.add_argument("--minutes", type=float, default=4.0, help="of generating and training, by one thread")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default="consistency;alignment;both", help=f"separated by ; of {'; '.join(ARMS)}; or all")
    parser.add_argument("--trajectories", type=int, default=1024)
    parser.add_argument("--at-once", type=int, default=2, help="runs beside each other, a thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/alignment-study"))
    given = parser.parse_args()
    names = list(ARMS) if given.arms == "all" else [name.strip() for name in given.arms.split(";")]
    given.out.mkdir(parents=True, exist_ok=True)
    generating = generate(given.out, given.trajectories)

    def measured(name: str, seed: int) -> dict[int, dict[str, float]]:
        folder = folder_of(given.out, name, seed)
        if not (folder / "student").exists():
            left = given.minutes - (0 if name == "consistency" else generating)
            limits = {"trainer.max_minutes": round(left, 2), "trainer.max_steps": 100_000}
            run(folder, {**ARMS[name], "seed": seed, **limits}, given.out, given.trajectories)
        return figures_of(folder / "student")

    runs = [(name, seed) for seed in map(int, given.seeds.split(",")) for name in names]
    found = all_of(runs, given.at_once, measured)
    tell(found, FIGURES, f"{given.minutes:g} minutes, {generating:.1f} of them generating where ways are learned from")


def generate(out: Path, trajectories: int) -> float:
    """Encode the data, then generate the ways, into a cache of the study's own: the minutes of the generating."""
    kept = out / "generating.json"
    if not kept.exists():
        run(out / "encoding", {"method": "consistency", "trainer.max_steps": 1}, out, trajectories)
        plain = run(out / "once", {"method": "consistency", "trainer.max_steps": 1}, out, trajectories)
        generated = run(out / "generating", {"trainer.max_steps": 1}, out, trajectories)
        kept.write_text(json.dumps({"minutes": generated - plain}))
    minutes: float = json.loads(kept.read_text())["minutes"]
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
    told = evaluated(student, CALLS)
    scores = {row["network_calls"]: row["scores"] for row in told["student"]}
    gaps = {gap["network_calls"]: gap["closed"] for gap in told["gaps"]}
    return {calls: {**scores[calls], "gap": gaps[calls]} for calls in CALLS}


if __name__ == "__main__":
    main()
