"""`gendistill sample`: images from prompts, from noise or from other images, to a file or a folder."""

from __future__ import annotations

import mimetypes
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gendistill.gan.generator_sampler import GeneratorSampler
from gendistill.runtime.device import make_folder
from gendistill.runtime.files import SIGNATURE, atomic_write, holds_nothing, is_signed, require_new, require_vacant
from gendistill.runtime.notebook import images_html, text_html
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import FewStepSampler, Sampler, image_grid, to_uint8
from gendistill.samplers.offload.placed import PlacedSampler
from gendistill.samplers.tasks import TEXT_TO_IMAGE
from gendistill.sampling.image_files import is_own_png, save_own_png
from gendistill.sampling.load import ON_CPU, Opening, input_prompts, open_within
from gendistill.sampling.task_inputs import NO_FILES, TaskFiles


@dataclass(frozen=True)
class GeneratedImages:
    """The files of a call of `sample`, and its figures; `seconds` is the time of sampling alone."""

    files: list[Path]
    images: int
    steps: int
    seconds: float
    warnings: list[str] = field(default_factory=list)
    placement: str | None = None

    def describe(self) -> str:
        path = self.files[0] if len(self.files) == 1 else f"{self.files[0].parent} ({len(self.files)} files)"
        images = f"{self.images} image{'s' if self.images != 1 else ''} of {self.steps} step{'s' if self.steps != 1 else ''}"
        placement = f", placement {self.placement}" if self.placement else ""
        return f"{path}: {images} in {self.seconds:.1f} s{placement}"

    def _repr_html_(self) -> str:
        return text_html(self.describe()) + images_html(self.files)


def generate(
    model: str,
    prompts: list[str] | None,
    out: Path,
    *,
    opening: Opening = ON_CPU,
    files: TaskFiles = NO_FILES,
    interpolate: int | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    num: int = 1,
    batch_size: int = 16,
) -> GeneratedImages:
    """Sample `num` images of each prompt, image k with seed `seed + k`.

    Args:
        prompts: None for all classes of a class-conditional model, or the empty prompt of an unconditional model.
        out: `.png` for one image or a grid with one row per prompt, `.npy` for floats (N, H, W, 3) in [0, 1], else a folder.
        files: inputs of the sampling in addition to prompts.
        interpolate: for a GAN: instead, `num` strips of this many images for each prompt, which interpolate between the noise
            of two seeds; one row per strip.

    Raises:
        ValueError: the model cannot be opened or needs prompts, `out` has another suffix, or files that this program has not
            written would be lost.
    """
    out = out.expanduser()
    is_folder = _is_folder(out)
    make_folder(out if is_folder else out.parent)
    if is_folder:
        require_vacant(out, "out", lambda path: holds_nothing(path) or is_own_png(path))
    else:
        require_new(out, "out", lambda file: is_signed(file) or is_own_png(file))
    sampler = open_within(model, opening)
    if files.image is not None and not sampler.text_to_image:
        prompts = input_prompts(sampler, files.image, prompts)
    elif prompts is None and (prompts := sampler.own_prompts) is None:
        message = f"--input: expects images, which {model} translates"
        raise ValueError(message if sampler.from_images else "--prompt and --prompts: expects one of them")
    repeated = [prompt for prompt in prompts for _ in range(num)]
    steps = sampler.default_steps if steps is None else steps
    sampler.require_steps(steps)
    if not sampler.text_to_image and (files.mask is not None or files.control is not None):
        raise ValueError(f"--mask, --control: expect a text-to-image model; this is a {sampler.kind}")
    warnings, task = sampler.advice(steps, guidance_scale), TEXT_TO_IMAGE
    if isinstance(sampler, FewStepSampler) and files.any:
        task = files.read(sampler, len(repeated))
    started = time.perf_counter()
    if interpolate is not None:
        images = _strips(sampler, repeated, interpolate, seed, guidance_scale)
    else:
        with advancing_bar("sampling", len(repeated)) as progress:
            batches = sampler.images(
                repeated,
                [seed + number for number in range(len(repeated))],
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                batch_size=batch_size,
                progress=progress,
                task=task,
            )
            images = torch.cat([batch.cpu() for batch in batches])
    seconds = time.perf_counter() - started
    placement = sampler.placement.name if isinstance(sampler, PlacedSampler) and sampler.placement else None
    return GeneratedImages(_write(images, out, interpolate or num), len(images), steps, seconds, warnings, placement)


def _strips(sampler: Sampler, prompts: list[str], count: int, seed: int, guidance_scale: float | None) -> torch.Tensor:
    """Images (P * count, 3, H, W): strip k of `count` images interpolates between the noise of seeds + 2k and + 2k + 1."""
    if not isinstance(sampler, GeneratorSampler):
        raise ValueError(f"interpolate {count}: expects a GAN; this is a {sampler.kind}")
    sampler.require_guidance(1 if guidance_scale is None else guidance_scale)
    seeds = [(seed + 2 * number, seed + 2 * number + 1) for number in range(len(prompts))]
    return sampler.strips(prompts, seeds, count).flatten(0, 1).cpu()


def _is_folder(out: Path) -> bool:
    """Whether `out` names a folder of images: `images`, `student.v1.5`, or one that exists.

    Raises:
        ValueError: it has the suffix of a kind of file that is not written.
    """
    suffix = out.suffix.lower()
    if out.is_dir() or suffix in ("", ".png", ".npy"):
        return out.is_dir() or not suffix
    if suffix in Image.registered_extensions() or mimetypes.guess_type(out.name)[0] is not None:
        raise ValueError(f"out {out}: expects a .png, a .npy or a folder")
    return True


def _write(images: torch.Tensor, out: Path, columns: int) -> list[Path]:
    """Write images (N, 3, H, W) in [0, 1] to `out`; returns the files."""
    if out.is_dir():
        files = [out / f"{number:05d}.png" for number in range(len(images))]
        for image, file in zip(images, files, strict=True):
            _save_png(image, file)
        return files
    if out.suffix.lower() == ".npy":
        with atomic_write(out) as temporary:
            with temporary.open("wb") as array:
                np.save(array, images.permute(0, 2, 3, 1).numpy())
                array.write(SIGNATURE)
        return [out]
    _save_png(image_grid(images, columns=columns if columns > 1 else 8), out)
    return [out]


def _save_png(image: torch.Tensor, file: Path) -> None:
    save_own_png(Image.fromarray(to_uint8(image).permute(1, 2, 0).numpy()), file)
