"""One image of what a teacher and its student generate from the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from gendistill.samplers import FewStepSampler, image_grid, to_uint8
from gendistill.sampling.image_files import save_own_png

MIN_EDGE = 128  # pixels; smaller images are enlarged


def write_image_sheet(student: str | Path, prompts: Sequence[str], out: Path, *, guidance_scale: float, seed: int = 0) -> None:
    """Write a PNG: the teacher's images at 50 steps in the upper row, the student's in the lower, a column a prompt.

    Args:
        student: the folder of a student; it names its teacher.
        guidance_scale: of the teacher.
        seed: of the first prompt; the next ones count up.

    Raises:
        ValueError: the student or its teacher cannot be opened.
    """
    sampler = FewStepSampler.from_pretrained(student)
    if sampler.spec is None:
        raise ValueError(f"model {student}: is no student; expects the folder of one")
    spec = sampler.spec
    teacher = FewStepSampler.from_pretrained(spec.teacher, **spec.teacher_opening)
    seeds = [seed + number for number in range(len(prompts))]
    rows = [*teacher.images(prompts, seeds, guidance_scale=guidance_scale), *sampler.images(prompts, seeds)]
    sheet = image_grid(torch.cat(rows), columns=len(prompts))
    image = Image.fromarray(to_uint8(sheet).permute(1, 2, 0).numpy())
    factor = max(1, MIN_EDGE // sampler.resolution)
    save_own_png(image.resize((factor * image.width, factor * image.height), Image.Resampling.BICUBIC), out)
