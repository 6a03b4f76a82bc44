"""`gendistill sample`: pictures from prompts, to a file or a folder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.utils import make_grid

from gendistill.atomic import written_aside
from gendistill.machine import make_folder, usable_device
from gendistill.progress import advancing_bar
from gendistill.samplers import FewStepSampler, to_uint8


@dataclass(frozen=True)
class Drawing:
    files: list[Path]
    pictures: int
    steps: int
    seconds: float

    def describe(self) -> str:
        shown = self.files[0] if len(self.files) == 1 else f"{self.files[0].parent} ({len(self.files)} files)"
        return f"{shown}: {self.pictures} pictures of {self.steps} steps in {self.seconds:.1f} s"


def draw(
    model: str,
    prompts: list[str] | None,
    out: Path,
    *,
    steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    num: int = 1,
    batch_size: int = 16,
    device: str | None = None,
) -> Drawing:
    """Draw `num` pictures of each prompt, picture k with seed `seed + k`.

    Args:
        prompts: all that the model knows where None: every class, or the blank one of a model without conditions.
        out: `.png` for one picture or a grid with a row a prompt, `.npy` for floats (N, H, W, 3) in [0, 1], else a folder.

    Raises:
        ValueError: the model cannot be opened or needs prompts, or `out` has an ending that is none of these.
    """
    if out.suffix not in ("", ".png", ".npy"):
        raise ValueError(f"out {out}: takes a .png, a .npy or a folder")
    make_folder(out.parent if out.suffix else out)
    sampler = FewStepSampler.from_pretrained(model, device=usable_device(device))
    if prompts is None and (prompts := sampler.own_prompts) is None:
        raise ValueError("--prompt and --prompts: takes one of them")
    repeated = [prompt for prompt in prompts for _ in range(num)]
    seeds = [seed + number for number in range(len(repeated))]
    steps = sampler.default_steps if steps is None else steps
    if steps > (most := sampler.pipeline.scheduler.config.num_train_timesteps):
        raise ValueError(f"steps {steps}: takes at most {most}, the model's timesteps")
    started = time.perf_counter()
    with advancing_bar("sampling", len(repeated)) as progress:
        batches = sampler.pictures(
            repeated,
            seeds,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            batch_size=batch_size,
            progress=progress,
        )
        pictures = torch.cat([batch.cpu() for batch in batches])
    seconds = time.perf_counter() - started
    return Drawing(_write(pictures, out, num), len(pictures), steps, seconds)


def _write(pictures: torch.Tensor, out: Path, columns: int) -> list[Path]:
    """Pictures (N, 3, H, W) in [0, 1] to `out`; gives the files."""
    if out.suffix == ".npy":
        with written_aside(out) as aside:
            np.save(aside, pictures.permute(0, 2, 3, 1).numpy())
        return [out]
    if out.suffix == ".png":
        grid = make_grid(pictures, nrow=columns if columns > 1 else 8, padding=2) if len(pictures) > 1 else pictures[0]
        _save_png(grid, out)
        return [out]
    files = [out / f"{number:05d}.png" for number in range(len(pictures))]
    for picture, file in zip(pictures, files, strict=True):
        _save_png(picture, file)
    return files


def _save_png(picture: torch.Tensor, file: Path) -> None:
    with written_aside(file) as aside:
        Image.fromarray(to_uint8(picture).permute(1, 2, 0).numpy()).save(aside)
