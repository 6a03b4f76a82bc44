"""tiny-sd with half of its multiply-accumulates, with and without feature losses: the same steps, several seeds, intervals.

    python benchmarks/compression_study.py --steps 1500 --seeds 0,1,2 --out runs/compression-study

Each run is by one thread, `--at-once` runs beside each other. What has been trained and measured stays: stopped, it goes on
from there.
"""

import argparse
from pathlib import Path

from study import all_of, distilled, evaluated, folder_of, tell

NONE: dict[str, object] = {
    "compression.features.hints": 0,
    "compression.features.attention": 0,
    "compression.relations.distance": 0,
}
ARMS: dict[str, dict[str, object]] = {
    "all": {},
    "output alone": NONE,
    "hints": {**NONE, "compression.features.hints": 0.5},
    "attention": {**NONE, "compression.features.attention": 0.1},
    "relations": {**NONE, "compression.relations.distance": 0.1},
    "fading": {"compression.features.hints": "{0: 0.5, 0.7: 0}", "compression.features.attention": "{0: 0.1, 0.7: 0}"},
}
FIGURES = ("fd-emoji", "psnr", "ssim", "feature_cosine")
STEPS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default="all;output alone", help=f"separated by ; of {'; '.join(ARMS)}")
    parser.add_argument("--at-once", type=int, default=2, help="runs beside each other, a thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/compression-study"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    limits = {"trainer.max_steps": given.steps, "trainer.validate_every": 1_000_000}

    def measured(name: str, seed: int) -> dict[int, dict[str, float]]:
        folder = folder_of(given.out, name, seed)
        if not (folder / "student").exists():
            distilled("configs/compression.yaml", folder, {**ARMS[name], "seed": seed, **limits})
        return {row["network_calls"]: row["scores"] for row in evaluated(folder / "student", [STEPS])["student"]}

    names = [name.strip() for name in given.arms.split(";")]
    runs = [(name, seed) for seed in map(int, given.seeds.split(",")) for name in names]
    tell(all_of(runs, given.at_once, measured), FIGURES, f"{given.steps:,} steps of training, {STEPS} of sampling")


if __name__ == "__main__":
    main()
