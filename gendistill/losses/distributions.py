"""Distances between two distributions, estimated from a batch of each; the samples of the two batches are not paired.

Samples are (N, D) and (M, D), or images and features (N, ...), which are flattened. Gradients flow to both batches: detach the
one that is not trained. Identical samples give gradient 0, not infinity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gendistill.losses.numerics import check_batch, check_shapes, in_float32, unit
from gendistill.runtime.device import to_device

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # bandwidths in units of the median distance


@in_float32
def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Squared maximum mean discrepancy, averaged over Gaussian kernels of several bandwidths: a scalar, at most 2.

    Gretton et al. 2012, eq. 3: the unbiased estimator, so its mean is 0 for equal distributions, single values may be negative,
    and the expectation does not depend on the batch size. The bandwidths are `FACTORS` times the median distance over all pairs
    of both batches, without gradient (the median heuristic, section 8); that median counts as 1 where it is 0. Li et al. 2015
    (GMMN) train generators with this loss alone, in batches of 1000.

    Raises:
        ValueError: dimensions differ, or a batch has fewer than 2 samples.
    """
    x, y = _flat(x, y, 2)
    median = F.pdist(torch.cat([x.detach(), y.detach()]).float()).median()
    median = torch.where(median > 0, median, 1.0)
    return torch.stack([_mmd(x, y, median * factor) for factor in FACTORS]).mean()


def random_projections(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Directions (count, dim) of length 1, uniform on the sphere, on the generator's device."""
    return unit(torch.randn(count, dim, generator=generator, device=generator.device), 1)


@in_float32
def sliced_wasserstein(x: Tensor, y: Tensor, projections: Tensor) -> Tensor:
    """Squared Wasserstein distance (p = 2) of the projected batches, averaged over projections: a scalar, at least 0.

    Bonneel et al. 2015, computed by sorting; the batch sizes may differ. For two Gaussians of equal covariance its mean is
    |difference of means|^2 / D, so multiply by D for a scale that does not depend on the dimension. The estimate is biased
    upwards by the sampling error, which falls with the batch size.

    Args:
        projections: directions (P, D) of length 1.

    Raises:
        ValueError: dimensions differ, or a batch is empty.
    """
    x, y = _flat(x, y, 1)
    if projections.shape[1:] != x.shape[1:]:
        raise ValueError(f"projections {tuple(projections.shape)}: expects {x.shape[1]} columns, as the samples have")
    directions = projections.to(x).T
    return _wasserstein_of_columns(x @ directions, y @ directions).mean()


def patch_projections(count: int, channels: int, size: int, generator: torch.Generator, *, centred: bool = False) -> Tensor:
    """Random directions (count, channels, size, size) of length 1 that patches are projected onto; `centred` ones sum to 0.

    Centred projections ignore the mean of a patch (brightness), and depend only on the variation within it.
    """
    directions = torch.randn(count, channels * size * size, generator=generator, device=generator.device)
    directions = directions - directions.mean(1, keepdim=True) if centred else directions
    return unit(directions, 1).unflatten(1, (channels, size, size))


@in_float32
def patch_sliced_wasserstein(
    images: Tensor, others: Tensor, projections: Tensor, *, paired: bool = True, levels: int = 2, stride: int = 1
) -> Tensor:
    """Sliced Wasserstein distance between the patch distributions of images and of others: a scalar, at least 0, in the units
    of the images.

    The Wasserstein distance (p = 1) of the projected patches, by sorting, averaged over projections and over the levels of a
    pyramid whose edges halve (Elnekave & Weiss 2022, section 3.2; the pyramid: Karras et al. 2018, section 5). The position of
    a patch does not count. A per-pixel distance is smallest for the mean of all plausible images, which is blurred; this
    distance is not, since a blurred image has no sharp patches.

    Args:
        images, others: (B, C, H, W).
        projections: (P, C, k, k), see `patch_projections`.
        paired: compare the patches of each image with those of the other image in the same row; else the patches of all images
            together with those of all others.
        stride: pixels from one patch to the next.

    Raises:
        ValueError: the shapes differ, or the smallest level is smaller than a patch.
    """
    check_shapes(images, others, "images")
    smallest, size = min(images.shape[2:]) >> max(levels - 1, 0), max(projections.shape[2:])
    if levels < 1 or smallest < size:
        raise ValueError(f"levels {levels}: expects 1 or more, the smallest of which holds a patch of {size} pixels")
    distances = []
    for level in range(levels):
        if level:
            images, others = F.avg_pool2d(images, 2), F.avg_pool2d(others, 2)
        image_patches = _projected_patches(images, projections, paired, stride)
        other_patches = _projected_patches(others, projections, paired, stride)
        distances.append((image_patches - other_patches).abs().mean())
    return torch.stack(distances).mean()


def _projected_patches(images: Tensor, projections: Tensor, paired: bool, stride: int) -> Tensor:
    """The sorted projections of all patches: (B, P, positions), or (P, B * positions)."""
    projected = F.conv2d(images, projections.to(images), stride=stride).flatten(2)
    return (projected if paired else projected.transpose(0, 1).flatten(1)).sort(-1).values


def _wasserstein_of_columns(x: Tensor, y: Tensor) -> Tensor:
    """W_2^2 between the columns of (N, P) and (M, P), (P,): the integral of the difference of their quantile functions."""
    n, m = len(x), len(y)
    steps = sorted({*range(m, n * m + 1, m), *range(n, n * m + 1, n)})  # of either quantile function, in units of 1 / (N M)
    ends = to_device(torch.tensor(steps), x.device)
    widths = ends.diff(prepend=ends.new_zeros(1)).to(x) / (n * m)
    x, y = x.sort(dim=0).values[(ends - 1) // m], y.sort(dim=0).values[(ends - 1) // n]
    return widths @ (x - y).abs().pow(2.0)


def _mmd(x: Tensor, y: Tensor, bandwidth: Tensor) -> Tensor:
    return _off_diagonal_mean(x, bandwidth) + _off_diagonal_mean(y, bandwidth) - 2 * _gaussian(x, y, bandwidth).mean()


def _off_diagonal_mean(x: Tensor, bandwidth: Tensor) -> Tensor:
    matrix = _gaussian(x, x, bandwidth)
    return (matrix.sum() - matrix.diagonal().sum()) / (len(matrix) * (len(matrix) - 1))


def _gaussian(x: Tensor, y: Tensor, bandwidth: Tensor) -> Tensor:
    # |x|^2 + |y|^2 - 2 x . y would lose small distances to rounding
    distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return (distances.square() / (-2 * bandwidth**2)).exp()


def _flat(x: Tensor, y: Tensor, min_samples: int) -> tuple[Tensor, Tensor]:
    for batch in (x, y):
        check_batch(batch, min_samples, "this distance")
    x, y = x.flatten(1), y.flatten(1)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"dimension {x.shape[1]}: expects that of the other batch, {y.shape[1]}")
    return x, y
