"""Distances between two batches as samples of distributions: no image of one belongs to an image of the other.

Samples are (N, D) and (M, D), or images and features (N, ...) that are flattened. Gradients flow to both: detach the one that
is not trained. Samples that coincide give gradient 0, not infinity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gendistill.losses.numerics import check_batch, check_shapes, in_float32, unit

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the median distance: the bandwidths


@in_float32
def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Squared maximum mean discrepancy, averaged over Gaussian kernels of several bandwidths: a scalar, at most 2.

    Gretton et al. 2012, eq. 3: unbiased, so 0 on average for one distribution, often below 0, and of an expectation that does
    not depend on the batch size. The bandwidths are `FACTORS` times the median distance of all pairs of both batches, taken as
    a constant (the median heuristic, section 8); of 1 where most samples coincide. Li et al. 2015 (GMMN) train generators by
    it alone, with batches of 1000.

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
    """Squared Wasserstein distance (p = 2) between the two batches along a line, averaged over lines: a scalar, at least 0.

    Bonneel et al. 2015, by sorting; the batches may differ in size. For two Gaussians of one covariance it is
    |difference of means|^2 / D on average, so multiply by D for a scale that does not depend on the dimension. Of finite
    batches it is too high by their sampling error, which falls with the batch size.

    Args:
        projections: directions (P, D), of length 1.

    Raises:
        ValueError: dimensions differ, or a batch has no sample.
    """
    x, y = _flat(x, y, 1)
    if projections.shape[1:] != x.shape[1:]:
        raise ValueError(f"projections {tuple(projections.shape)}: expects {x.shape[1]} columns, as the samples have")
    along = projections.to(x).T
    return _wasserstein_of_columns(x @ along, y @ along).mean()


def patch_projections(count: int, channels: int, size: int, generator: torch.Generator, *, centred: bool = False) -> Tensor:
    """Directions (count, channels, size, size) of length 1 along which patches are compared; `centred` ones sum to 0.

    Along centred ones brightness and colour do not count, only what changes within a patch.
    """
    lines = torch.randn(count, channels * size * size, generator=generator, device=generator.device)
    lines = lines - lines.mean(1, keepdim=True) if centred else lines
    return unit(lines, 1).unflatten(1, (channels, size, size))


@in_float32
def patch_sliced_wasserstein(
    images: Tensor, others: Tensor, projections: Tensor, *, paired: bool = True, levels: int = 2, stride: int = 1
) -> Tensor:
    """How far the patches of images are, as a set, from those of others: a scalar, at least 0, in the images' units.

    The Wasserstein distance (p = 1) along each line, by sorting, averaged over lines and over the levels of a pyramid that
    halves the edges (Elnekave & Weiss 2022, section 3.2; the pyramid: Karras et al. 2018, section 5). Where a patch lies does
    not count, and no blurred image has sharp ones: a distance pixel by pixel is least at the mean of what may be there, this
    one is not.

    Args:
        images, others: (B, C, H, W).
        projections: (P, C, k, k), see `patch_projections`.
        paired: each image is held against its own other; else all images are one set, and all others are another.
        stride: from one patch to the next.

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
        ours, theirs = (_along(of, projections, paired, stride) for of in (images, others))
        distances.append((ours - theirs).abs().mean())
    return torch.stack(distances).mean()


def _along(images: Tensor, projections: Tensor, paired: bool, stride: int) -> Tensor:
    """Where the patches lie on each line, sorted: (B, P, places), or (P, B * places)."""
    places = F.conv2d(images, projections.to(images), stride=stride).flatten(2)
    return (places if paired else places.transpose(0, 1).flatten(1)).sort(-1).values


def _wasserstein_of_columns(x: Tensor, y: Tensor) -> Tensor:
    """W_2^2 between the columns of (N, P) and (M, P), (P,): the integral of the difference of their quantile functions."""
    n, m = len(x), len(y)
    steps = [torch.arange(1, n + 1, device=x.device) * m, torch.arange(1, m + 1, device=x.device) * n]
    ends = torch.cat(steps).unique()  # where either quantile function steps, in units of 1 / (N M)
    widths = ends.diff(prepend=ends.new_zeros(1)).to(x) / (n * m)
    x, y = x.sort(dim=0).values[(ends - 1) // m], y.sort(dim=0).values[(ends - 1) // n]
    return widths @ (x - y).abs().pow(2.0)


def _mmd(x: Tensor, y: Tensor, bandwidth: Tensor) -> Tensor:
    return _mean_of_others(x, bandwidth) + _mean_of_others(y, bandwidth) - 2 * _gaussian(x, y, bandwidth).mean()


def _mean_of_others(x: Tensor, bandwidth: Tensor) -> Tensor:
    matrix = _gaussian(x, x, bandwidth)
    return (matrix.sum() - matrix.diagonal().sum()) / (len(matrix) * (len(matrix) - 1))


def _gaussian(x: Tensor, y: Tensor, bandwidth: Tensor) -> Tensor:
    # not by |x|^2 + |y|^2 - 2 x . y, which loses small distances to rounding
    distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return (distances.square() / (-2 * bandwidth**2)).exp()


def _flat(x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    for batch in (x, y):
        check_batch(batch, least, "this distance")
    x, y = x.flatten(1), y.flatten(1)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"dimension {x.shape[1]}: expects that of the other batch, {y.shape[1]}")
    return x, y
