"""tiny-sd's student in 8 bits: trained for it, and as it is, beside the same further training in float32; seeds, intervals.

    make align && python benchmarks/quantization_study.py --seeds 1,2,3,4 --out runs/quantization-study

Each run is by one thread, `--at-once` runs beside each other. What has been trained and measured stays: stopped, it goes on
from there.
"""

import argparse
from pathlib import Path

from study import all_of, distilled, evaluated, folder_of, tell

FLOAT, AS_IT_IS, TRAINED = "float32", "int8 as it is", "int8, trained for it"
TRAINING = {FLOAT: "none", TRAINED: "int8"}
STEPS = (4, 2, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3,4")
    parser.add_argument("--at-once", type=int, default=2, help="runs beside each other, a thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/quantization-study"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in given.seeds.split(",")]

    def trained(name: str, seed: int) -> Path:
        folder = folder_of(given.out, name, seed)
        if not (folder / "student").exists():
            distilled("configs/int8.yaml", folder, {"quantization": TRAINING[name], "seed": seed})
        return folder / "student"

    students = all_of([(name, seed) for seed in seeds for name in TRAINING], given.at_once, trained)

    def measured(name: str, seed: int) -> dict[int, dict[str, float]]:
        student = students[TRAINED if name == TRAINED else FLOAT, seed]
        told = evaluated(student, STEPS, *(["none"] if name == FLOAT else ["int8", folder_of(given.out, name, seed)]))
        return {row["network_calls"]: row["scores"] for row in told["student"]}

    arms = [(name, seed) for seed in seeds for name in (FLOAT, AS_IT_IS, TRAINED)]
    tell(all_of(arms, given.at_once, measured), ("fd-emoji", "psnr"), "configs/int8.yaml, from the student of make align")


if __name__ == "__main__":
    main()
