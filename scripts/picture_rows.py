"""The same prompts and seeds, a row a model: what the pages of docs/ show.

    python scripts/picture_rows.py assets/tiny-sd:50:2 runs/alignment/student:4 runs/alignment/student:1 \\
        --labels "teacher, 50 steps" "4 calls" "1 call" --out docs/images/latent-alignment.png

A model is FOLDER:STEPS, or FOLDER:STEPS:GUIDANCE_SCALE; a teacher is sampled by DDIM on the trailing grid.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from gendistill.evaluation.teacher_plans import teacher_scheduler
from gendistill.samplers import FewStepSampler

PROMPTS = [
    "google emoji of food fruit",
    "google emoji of animal mammal",
    "google emoji of face smiling",
    "google emoji of transport ground",
    "google emoji of person role",
    "twitter emoji of animal bird",
    "twitter emoji of country flag",
    "twitter emoji of clothing",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--labels", nargs="+")
    parser.add_argument("--prompts", nargs="+", default=[prompt for prompt in PROMPTS for _ in range(2)])
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; the next ones count on")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows = [drawn(model, given.prompts, given.seed) for model in given.models]
    labels = given.labels or given.models
    figure, axes = plt.subplots(
        len(rows), len(given.prompts), figsize=(0.62 * len(given.prompts) + 1.4, 0.66 * len(rows)), dpi=110, squeeze=False
    )
    for line, pictures, label in zip(axes, rows, labels, strict=True):
        for place, picture in zip(line, pictures, strict=True):
            place.imshow(picture.permute(1, 2, 0).numpy())
            place.set(xticks=[], yticks=[])
            place.set_frame_on(False)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    figure.tight_layout(pad=0.2)
    figure.savefig(given.out)


def drawn(model: str, prompts: list[str], seed: int) -> Tensor:
    folder, steps, *scale = model.split(":")
    sampler = FewStepSampler.from_pretrained(folder)
    if sampler.spec is None:
        sampler.pipeline.scheduler = teacher_scheduler("ddim", sampler.pipeline.scheduler.config)
    seeds = [seed + number for number in range(len(prompts))]
    guidance_scale = float(scale[0]) if scale else None
    return torch.cat(list(sampler.pictures(prompts, seeds, num_inference_steps=int(steps), guidance_scale=guidance_scale)))


if __name__ == "__main__":
    main()
