"""How near a student's pictures are to its teacher's, picture by picture (same noise, same prompt)."""

import torch
from torch.nn import functional as F


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, float32 (N,), of pictures (N, 3, H, W); infinite where they are equal.

    10 log10(peak^2 / MSE), peak 255 for uint8 and 2 for floats, which are in [-1, 1].

    Raises:
        ValueError: shapes or dtypes differ.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"pictures: got {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}, takes equal ones.")
    peak = 255.0 if a.dtype == torch.uint8 else 2.0
    mse = (a.float() - b.float()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(peak**2 / mse)


def feature_cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine in [-1, 1], (N,), between features (N, D) of the pictures of each pair."""
    return F.cosine_similarity(a, b, dim=1)
