"""The image at the top of the README: a teacher at many steps above its students at few, of the same prompts and seeds.

python scripts/recipes/readme_image.py assets/tiny-sd3 runs/tiny-sd3/alignment/student --guidance-scale 2
"""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gendistill import FewStepSampler
from gendistill.samplers import to_uint8

PROMPTS = (
    *(
        "google emoji of food fruit",
        "twitter emoji of animal mammal",
        "google emoji of face smiling",
        "twitter emoji of plant flower",
    ),
    *(
        "google emoji of person role",
        "twitter emoji of heart",
        "google emoji of animal bird",
        "twitter emoji of sky and weather",
    ),
    *("google emoji of food sweet", "twitter emoji of cat face"),
)
EDGE, GAP, LABEL = 88, 8, 30  # pixels of an image, between two, and of a line of text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher")
    parser.add_argument("students", nargs="+")
    parser.add_argument("--steps", type=int, nargs="+", default=(50, 4), help="of the teacher, and of the students")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="of the teacher")
    parser.add_argument("--seed", type=int, default=0, help="of the first image; the next ones count on")
    parser.add_argument("--out", type=Path, default=Path("docs/images/teacher-and-student.png"))
    options = parser.parse_args()
    teacher, many = FewStepSampler.from_pretrained(options.teacher), options.steps[0]
    calls = teacher.network_calls(many, options.guidance_scale)
    rows = {f"Teacher, {many} steps ({calls} network calls)": sampled(teacher, many, options.guidance_scale, options.seed)}
    students = [FewStepSampler.from_pretrained(folder) for folder in options.students]
    for student in students:
        assert student.spec is not None
        name = "Student" if len(students) == 1 else student.spec.method.replace("_", " ").capitalize()
        for few in (steps for steps in options.steps[1:] if steps in student.spec.num_inference_steps):
            label = f"{name}, {few} step{'s' if few > 1 else ''} ({student.network_calls(few, 1)} network calls)"
            rows[label] = sampled(student, few, None, options.seed)
    labelled_rows(rows).save(options.out, optimize=True)


def sampled(sampler: FewStepSampler, steps: int, guidance_scale: float | None, seed: int) -> Tensor:
    """uint8 (N, 3, H, W), one image a prompt."""
    seeds = list(range(seed, seed + len(PROMPTS)))
    batches = sampler.images(PROMPTS, seeds, num_inference_steps=steps, guidance_scale=guidance_scale)
    return to_uint8(torch.cat(list(batches)))


def labelled_rows(rows: dict[str, Tensor]) -> Image.Image:
    """A row of images below each label, on white."""
    count = len(next(iter(rows.values())))
    size = (GAP + count * (EDGE + GAP), len(rows) * (LABEL + EDGE + GAP) + GAP)
    canvas = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(18)  # words: allowed
    for row, (label, images) in enumerate(rows.items()):
        top = GAP + row * (LABEL + EDGE + GAP)
        pen.text((GAP, top), label, fill=(40, 40, 40), font=font)
        for column, image in enumerate(images):
            tile = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((EDGE, EDGE), Image.Resampling.LANCZOS)
            canvas.paste(tile, (GAP + column * (EDGE + GAP), top + LABEL))
    return canvas


if __name__ == "__main__":
    main()
