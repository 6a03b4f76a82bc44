"""tiny-sd with half of its multiply-accumulates, with and without feature losses; equal steps, several seeds, intervals.

    python benchmarks/compression_study.py --steps 1500 --seeds 0,1,2 --out runs/compression-study

Each run has one thread, `--at-once` runs are parallel. The study can be resumed: it keeps trained and measured runs.
"""

import argparse
from pathlib import Path

from study import distilled, evaluated, folder_of, print_table, run_all

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
    parser.add_argument("--steps", type=int, default=1500, help="training steps")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default="all;output alone", help=f"one or more of {'; '.join(ARMS)}")
    parser.add_argument("--at-once", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/compression-study"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    limits = {"trainer.max_steps": args.steps, "trainer.validate_every": 1_000_000}

    def measured(name: str, seed: int) -> dict[int, dict[str, float]]:
        folder = folder_of(args.out, name, seed)
        if not (folder / "student").exists():
            distilled("configs/compression.yaml", folder, {**ARMS[name], "seed": seed, **limits})
        return {row["network_calls"]: row["scores"] for row in evaluated(folder / "student", [STEPS])["student"]}

    names = [name.strip() for name in args.arms.split(";")]
    runs = [(name, seed) for seed in map(int, args.seeds.split(",")) for name in names]
    results = run_all(runs, args.at_once, measured)
    print_table(results, FIGURES, f"{args.steps:,} training steps, {STEPS} sampling steps")


if __name__ == "__main__":
    main()
