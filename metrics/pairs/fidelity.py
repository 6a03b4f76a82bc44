"""Similarity of a student's images to its teacher's, image by image (same noise, same prompt)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gendistill.metrics.metric import ImagePairs, Metric, MetricInputs, Need
from gendistill.metrics.pairs.perceptual import BACKBONES, Lpips

SSIM_WINDOW = 11  # pixels: a Gaussian of sigma 1.5, cut at 3.5 sigma
MAX_PSNR = 100.0  # dB; the value of equal images in a mean
PEAK = 255.0
BATCH_SIZE = 64


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(255^2 / MSE), float32 (N,); infinite for equal images.

    Images are (N, 3, H, W): uint8, or floats in [-1, 1].

    Raises:
        ValueError: shapes or dtypes differ.
    """
    _require_pairs(a, b)
    mse = (_to_bytes(a.float(), a.dtype) - _to_bytes(b.float(), b.dtype)).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(PEAK**2 / mse)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity in [-1, 1], float32 (N,), of images (N, C, H, W); 1 for equal images.

    Images are uint8, or floats in [-1, 1]. The formula is eq. 13 of Wang et al. 2004, with their window (a Gaussian of 11
    pixels, sigma 1.5), K1 = 0.01 and K2 = 0.03. Like their code and scikit-image, it averages over the channels and over the
    positions where the window fits; torchmetrics also includes a reflected border, which at 32 pixels changes the result by
    0.1 and more. Computed in float64, as variances are small differences of large numbers.

    Raises:
        ValueError: shapes or dtypes differ, or an image is smaller than the window.
    """
    _require_pairs(a, b)
    if a.ndim != 4 or min(a.shape[-2:]) < SSIM_WINDOW:
        window = f"{SSIM_WINDOW}x{SSIM_WINDOW}"
        raise ValueError(f"images: got {tuple(a.shape)}, SSIM expects (N, C, H, W) of at least {window} pixels, its window.")
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2

    def similarity(batch_a: Tensor, batch_b: Tensor) -> Tensor:
        x, y = (_to_bytes(images.cpu().double(), images.dtype).numpy() for images in (batch_a, batch_b))
        mean_x, mean_y = _windowed(x), _windowed(y)
        variances = _windowed(x * x) - mean_x**2 + _windowed(y * y) - mean_y**2
        covariance = _windowed(x * y) - mean_x * mean_y
        structure = (2 * covariance + c2) / (variances + c2)
        everywhere = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * structure
        return torch.from_numpy(everywhere.mean(axis=(1, 2, 3))).float()

    return _by_batch(similarity, a, b)


def _windowed(values: np.ndarray) -> np.ndarray:
    """Weighted means under the window at each position where it fits: float64 (N, C, H, W) to (N, C, H - 10, W - 10)."""
    from scipy.ndimage import gaussian_filter  # from an extra

    edge = SSIM_WINDOW // 2
    return gaussian_filter(values, 1.5, truncate=3.5, axes=(2, 3))[..., edge:-edge, edge:-edge]


def lpips_distance(lpips: Lpips, a: Tensor, b: Tensor) -> Tensor:
    """LPIPS, float32 (N,) on the CPU, of images (N, 3, H, W): uint8, or floats in [-1, 1]; 0 for equal images.

    Raises:
        ValueError: shapes or dtypes differ, or an image is smaller than the network's minimum.
    """
    _require_pairs(a, b)
    device = lpips.get_buffer("shift").device

    def signed(images: Tensor) -> Tensor:
        return (images.to(device).float() / 127.5 - 1) if images.dtype == torch.uint8 else images.to(device).float()

    return _by_batch(lambda x, y: lpips(signed(x), signed(y)).cpu(), a, b)


def feature_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity in [-1, 1], (N,), of the features (N, D) of the two images of each pair."""
    return F.cosine_similarity(a, b, dim=1)


def _require_pairs(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(
            f"images: got {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}, expects equal dtypes and shapes."
        )


def _to_bytes(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` of images of `dtype` (uint8, or floats in [-1, 1]) in [0, 255]."""
    return values if dtype == torch.uint8 else (values + 1) * (PEAK / 2)


def _by_batch(measure: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([measure(x, y) for x, y in zip(a.split(BATCH_SIZE), b.split(BATCH_SIZE), strict=True)])


def _values(compute: Callable[[ImagePairs], Tensor]) -> Callable[[MetricInputs], NDArray[np.float64]]:
    return lambda inputs: compute(inputs.image_pairs).double().numpy()


def _cosine_of_pairs(pairs: ImagePairs) -> Tensor:
    return feature_cosine(torch.as_tensor(np.asarray(pairs.features)), torch.as_tensor(np.asarray(pairs.teacher_features)))


def _lpips_of_pairs(pairs: ImagePairs) -> Tensor:
    assert isinstance(pairs.lpips, Lpips)
    return lpips_distance(pairs.lpips, pairs.images, pairs.teacher_images)


PSNR = Metric(
    name="psnr",
    label="PSNR",
    explanation="Similarity to the teacher's image of the same prompt and seed, in dB; equal images count as 100.",
    compute=_values(lambda pairs: psnr(pairs.images, pairs.teacher_images).clamp(max=MAX_PSNR)),
    higher_is_better=True,
    needs=frozenset({Need.PAIRS}),
    default="full",
    digits=1,
)
SSIM = Metric(
    name="ssim",
    label="SSIM",
    explanation="Structural similarity to the teacher's image of the same prompt and seed.",
    compute=_values(lambda pairs: ssim(pairs.images, pairs.teacher_images)),
    higher_is_better=True,
    needs=frozenset({Need.PAIRS}),
    min_edge=SSIM_WINDOW,
    default="full",
    in_summary=False,
)
FEATURE_COSINE = Metric(
    name="feature_cosine",
    label="cosine",
    explanation="Cosine of features with the teacher's image of the same prompt and seed.",
    compute=_values(_cosine_of_pairs),
    higher_is_better=True,
    needs=frozenset({Need.PAIRS, Need.PAIR_FEATURES}),
    default="full",
    digits=3,
)
LPIPS = Metric(
    name="lpips",
    label="LPIPS",
    explanation="Perceptual distance to the teacher's image of the same prompt and seed.",
    compute=_values(_lpips_of_pairs),
    higher_is_better=False,
    needs=frozenset({Need.PAIRS, Need.LPIPS}),
    min_edge=max(backbone.min_edge for backbone in BACKBONES.values()),
    default="full",
    in_summary=False,
    stems=("lpips",),
    named_after="lpips",
)
