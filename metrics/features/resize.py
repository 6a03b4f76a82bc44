"""Resizing images for a feature network, the choice with the largest influence on FID (Parmar et al. 2022).

clean: each channel by Pillow in float32, bicubic, antialiased, clipped to [0, 255], not rounded to integers; equal to
    clean-fid's `clean` to the bit. `clean-lanczos` is the same with the Lanczos filter.
legacy: bilinear as in TensorFlow 1.x, which the FID paper's code and torch-fidelity use: source = destination * scale
    without half-pixel centres and without antialiasing.
none: no resizing.
"""

import difflib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

CONVENTIONS = ("clean", "clean-lanczos", "legacy", "none")

_FILTERS = {"clean": Image.Resampling.BICUBIC, "clean-lanczos": Image.Resampling.LANCZOS}
_IN_WORDS = {
    "clean": "bicubic with antialiasing by Pillow in float32, not rounded, as clean-fid",
    "clean-lanczos": "Lanczos with antialiasing by Pillow in float32, not rounded",
    "legacy": "bilinear as TensorFlow 1.x (no antialiasing), as torch-fidelity",
}


@dataclass(frozen=True)
class Resize:
    """A convention and the size (height and width in pixels) of the resized images; `none` has no size.

    Raises:
        ValueError: the convention is unknown, the size is missing or below 1, or `none` has a size.
    """

    convention: str
    size: int | None = None

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            near = difflib.get_close_matches(self.convention, CONVENTIONS, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"resize: got {self.convention!r}, expects one of {', '.join(CONVENTIONS)}{hint}")
        if self.convention == "none" and self.size is not None:
            raise ValueError(f"size: got {self.size} for resize 'none', expects None.")
        if self.convention != "none" and (self.size is None or self.size < 1):
            raise ValueError(f"size: got {self.size} for resize {self.convention!r}, expects at least 1 pixel.")

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Resize `images` uint8 (B, 3, H, W) to float32 (B, 3, size, size) in [0, 255]; `clean` returns CPU tensors."""
        if self.size is None:
            return images.float()
        if self.convention == "legacy":
            return resize_legacy(images, self.size)
        return resize_clean(images, self.size, _FILTERS[self.convention])

    def __str__(self) -> str:
        return f"to {self.size}x{self.size}, {_IN_WORDS[self.convention]}" if self.size else "none"


def resize_clean(images: torch.Tensor, size: int, resample: Image.Resampling = Image.Resampling.BICUBIC) -> torch.Tensor:
    """Resize `images` uint8 (B, C, H, W) to float32 (B, C, size, size) in [0, 255], each channel separately by Pillow.

    Pillow releases Python's lock while it resizes, so that several threads can work at the same time.
    """
    planes = images.cpu().numpy().astype(np.float32)
    batch, channels = planes.shape[:2]
    out: NDArray[np.float32] = np.empty((batch, channels, size, size), np.float32)
    for number in range(batch):
        for channel in range(channels):
            resized = Image.fromarray(planes[number, channel]).resize((size, size), resample)
            np.clip(np.asarray(resized), 0, 255, out=out[number, channel])
    return torch.from_numpy(out)


def resize_legacy(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize `images` (B, C, H, W), uint8 or float in [0, 255], to float32 (B, C, size, size) as TensorFlow 1.x, bilinear.

    Rows are resized first, in TensorFlow's order of operations; on the CPU the result equals torch-fidelity's to the bit.
    """
    x = _interpolated(images.float(), size, dim=3)
    return _interpolated(x, size, dim=2)


def _interpolated(x: torch.Tensor, size: int, dim: int) -> torch.Tensor:
    length = x.shape[dim]
    # float32, as TensorFlow stores the scale in it.
    source = torch.arange(size, dtype=torch.float32) * torch.tensor(length / size, dtype=torch.float32)
    low = source.long()
    shape = [1] * x.ndim
    shape[dim] = size
    weight = (source - low).view(shape).to(x.device)
    at_low = x.index_select(dim, low.to(x.device))
    at_high = x.index_select(dim, (low + 1).clamp(max=length - 1).to(x.device))
    return at_high.sub_(at_low).mul_(weight).add_(at_low)
