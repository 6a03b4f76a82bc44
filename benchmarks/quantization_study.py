"""tiny-sd's student in int8, with and without quantization-aware training, and in float32; several seeds, intervals.

    make align && python benchmarks/quantization_study.py --seeds 1,2,3,4 --out runs/quantization-study

The float32 student has the same additional training. Each run has one thread, `--at-once` runs are parallel. The study can be
resumed: it keeps trained and measured runs.
"""

import argparse
from pathlib import Path

from study import distilled, evaluated, folder_of, print_table, run_all

FLOAT, POST_TRAINING, TRAINED = "float32", "int8, post-training", "int8, quantization-aware training"
TRAINING = {FLOAT: "none", TRAINED: "int8"}
STEPS = (4, 2, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3,4")
    parser.add_argument("--at-once", type=int, default=2, help="parallel runs, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/quantization-study"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in args.seeds.split(",")]

    def trained(name: str, seed: int) -> Path:
        folder = folder_of(args.out, name, seed)
        if not (folder / "student").exists():
            distilled("configs/int8.yaml", folder, {"quantization": TRAINING[name], "seed": seed})
        return folder / "student"

    students = run_all([(name, seed) for seed in seeds for name in TRAINING], args.at_once, trained)

    def measured(name: str, seed: int) -> dict[int, dict[str, float]]:
        student = students[TRAINED if name == TRAINED else FLOAT, seed]
        options = ["none"] if name == FLOAT else ["int8", folder_of(args.out, name, seed)]
        evaluation = evaluated(student, STEPS, *options)
        return {row["network_calls"]: row["scores"] for row in evaluation["student"]}

    arms = [(name, seed) for seed in seeds for name in (FLOAT, POST_TRAINING, TRAINED)]
    results = run_all(arms, args.at_once, measured)
    print_table(results, ("fd-emoji", "psnr"), "configs/int8.yaml, from the student of make align")


if __name__ == "__main__":
    main()
