"""What a model has drawn, kept on disk: a picture of a prompt and seed is drawn once, whoever asks for it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gendistill.data.images import decode_picture
from gendistill.runtime.device import make_folder
from gendistill.runtime.files import written_aside
from gendistill.samplers import Sampler, pictures_at_once, to_uint8

Progress = Callable[[int], None]


class Album:
    """The pictures that one sampler draws in one number of steps at one guidance scale.

    A folder of PNGs, named by a hash of prompt and seed, that any program can look at. A model with other weights, another
    scheduler, guidance scale or dtype has an album of its own, so nothing in it is ever out of date; what a crash left half
    done is gone on with.

    Args:
        root: of all albums.
    """

    def __init__(self, root: Path, sampler: Sampler, steps: int, guidance_scale: float) -> None:
        self.sampler, self.steps, self.guidance_scale = sampler, steps, guidance_scale
        self.described = sampler.described(steps, guidance_scale)
        self.key = self.key_of(sampler, steps, guidance_scale)
        self.folder = root / self.key
        self._times = self.folder / "drawing.json"

    @staticmethod
    def key_of(sampler: Sampler, steps: int, guidance_scale: float) -> str:
        """24 hex digits of all that a picture depends on beside its prompt and seed."""
        of = sampler.described(steps, guidance_scale)
        return hashlib.sha256(json.dumps(of, sort_keys=True, default=str).encode()).hexdigest()[:24]

    def __iter__(self) -> Iterator[Path]:
        return iter(sorted(self.folder.glob("*.png")))

    @property
    def seconds_per_picture(self) -> float | None:
        """Of all that was drawn into it, in batches; None before."""
        pictures, seconds = self._drawn()
        return seconds / pictures if pictures else None

    def pictures(self, prompts: Sequence[str], seeds: Sequence[int], progress: Progress | None = None) -> Iterator[Tensor]:
        """Batches of pictures uint8 (B, 3, H, W), one a prompt and seed, in their order; drawn where they are not there.

        Raises:
            ValueError: the disk does not take them.
        """
        batch_size = pictures_at_once(self.sampler.resolution, 100)
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            yield self._batch(list(prompts[part]), list(seeds[part]))
            if progress:
                progress(len(prompts[part]))

    def _batch(self, prompts: list[str], seeds: list[int]) -> Tensor:
        files = [self.folder / f"{name_of(prompt, seed)}.png" for prompt, seed in zip(prompts, seeds, strict=True)]
        pictures = [_read(file) for file in files]
        missing = [number for number, picture in enumerate(pictures) if picture is None]
        if missing:
            started = time.perf_counter()
            drawn = self._draw([prompts[number] for number in missing], [seeds[number] for number in missing])
            seconds = time.perf_counter() - started
            make_folder(self.folder)
            for number, picture in zip(missing, drawn, strict=True):
                pictures[number] = picture
                _write(picture, files[number])
            self._note(len(missing), seconds)
        return torch.stack([picture for picture in pictures if picture is not None])

    def _draw(self, prompts: list[str], seeds: list[int]) -> Tensor:
        batches = self.sampler.pictures(
            prompts,
            seeds,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            batch_size=len(prompts),
        )
        return torch.cat([to_uint8(batch).cpu() for batch in batches])

    def _drawn(self) -> tuple[int, float]:
        try:
            noted = json.loads(self._times.read_text())
            return int(noted["pictures"]), float(noted["seconds"])
        except (OSError, ValueError, KeyError):
            return 0, 0.0

    def _note(self, pictures: int, seconds: float) -> None:
        before = self._drawn()
        noted = {"pictures": before[0] + pictures, "seconds": before[1] + seconds, "of": self.described}
        with written_aside(self._times) as aside:
            aside.write_text(json.dumps(noted, indent=1, default=str) + "\n")


def name_of(prompt: str, seed: int) -> str:
    """The name of a picture in an album: 20 hex digits."""
    return hashlib.sha256(json.dumps([prompt, seed]).encode()).hexdigest()[:20]


def _write(picture: Tensor, file: Path) -> None:
    """Whole or not at all; not flushed, since what a power failure damages is drawn again."""
    aside = file.with_name(f".{file.name}")
    try:
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(aside, "PNG")
        os.replace(aside, file)
    except OSError as error:
        raise ValueError(f"{file} cannot be written: {error.strerror or error}") from error


def _read(file: Path) -> Tensor | None:
    """The picture uint8 (3, H, W) of a file; None where there is none, or a damaged one."""
    if not file.exists():
        return None
    try:
        return torch.from_numpy(np.array(decode_picture(file))).permute(2, 0, 1)
    except ValueError:
        return None
