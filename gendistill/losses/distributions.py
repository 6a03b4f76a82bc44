"""Distances between two batches as samples of distributions: no picture of one belongs to a picture of the other.

Samples are (N, D) and (M, D), or pictures and features (N, ...) that are flattened. Gradients flow to both: detach the one that
is not trained. Samples that coincide give gradient 0, not infinity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gendistill.losses.numerics import check_batch, check_shapes, in_float32, unit

Kernel = Callable[[Tensor, Tensor], Tensor]  # (N, D), (M, D) to (N, M)

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def gaussian_kernel(bandwidth: float | Tensor) -> Kernel:
    """exp(-|x - y|^2 / (2 bandwidth^2))."""
    return lambda x, y: (_distances(x, y).square() / (-2 * bandwidth**2)).exp()


def polynomial_kernel(degree: int = 3, scale: float | None = None, offset: float = 1.0) -> Kernel:
    """(scale x . y + offset)^degree; `scale` None is 1 / D: with the defaults KID's (Binkowski et al. 2018, section 4)."""
    return lambda x, y: ((1 / x.shape[1] if scale is None else scale) * (x @ y.T) + offset) ** degree


def linear_kernel() -> Kernel:
    """x . y, whose MMD^2 is the squared distance of the means."""
    return lambda x, y: x @ y.T


def median_gaussian_kernels(x: Tensor, y: Tensor, factors: Sequence[float] = FACTORS) -> list[Kernel]:
    """Gaussian kernels of bandwidths `factors` times the median distance of all pairs of both batches, taken as a constant.

    The median heuristic (Gretton et al. 2012, section 8). The bandwidth is 1 where most samples coincide.
    """
    with torch.no_grad():
        median = F.pdist(torch.cat([x.flatten(1), y.flatten(1)]).float()).median()
    median = torch.where(median > 0, median, 1.0)
    return [gaussian_kernel(median * factor) for factor in factors]


@in_float32
def mmd(x: Tensor, y: Tensor, kernels: Sequence[Kernel] | None = None, unbiased: bool = True) -> Tensor:
    """Squared maximum mean discrepancy, averaged over `kernels`: a scalar.

    Gretton et al. 2012, eq. 3 (unbiased: 0 on average for one distribution, so often below 0) and eq. 5, squared (biased: at
    least 0, and too high by (mean k(x, x) - mean k(x, x')) / N and the same of y). The expectation of the unbiased one does
    not depend on the batch size. With Gaussian kernels at most 2. Li et al. 2015 (GMMN) train generators by it alone, with
    batches of 1000.

    Args:
        kernels: None takes `median_gaussian_kernels(x, y)`.

    Raises:
        ValueError: dimensions differ, or a batch has no sample (fewer than 2 for the unbiased one).
    """
    x, y = _flat(x, y, 2 if unbiased else 1)
    if kernels is None:
        kernels = median_gaussian_kernels(x, y)
    return torch.stack([_mmd(x, y, kernel, unbiased) for kernel in kernels]).mean()


@in_float32
def energy_distance(x: Tensor, y: Tensor, unbiased: bool = True) -> Tensor:
    """2 mean |x - y| - mean |x - x'| - mean |y - y'|, a scalar in the samples' units (Székely & Rizzo 2013).

    The MMD^2 of the kernel -|x - y| (Sejdinovic et al. 2013), without a bandwidth to choose; `unbiased` as in `mmd`.

    Raises:
        ValueError: dimensions differ, or a batch has no sample (fewer than 2 for the unbiased one).
    """
    return _mmd(*_flat(x, y, 2 if unbiased else 1), lambda a, b: -_distances(a, b), unbiased)


def random_projections(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Directions (count, dim) of length 1, uniform on the sphere, on the generator's device."""
    return unit(torch.randn(count, dim, generator=generator, device=generator.device), 1)


@in_float32
def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    projections: Tensor | None = None,
    generator: torch.Generator | None = None,
    num_projections: int = 128,
    p: float = 2.0,
) -> Tensor:
    """Wasserstein distance to the power p between the two batches along a line, averaged over lines: a scalar, at least 0.

    Bonneel et al. 2015, by sorting; the batches may differ in size. For two Gaussians of one covariance and p = 2 it is
    |difference of means|^2 / D on average, so multiply by D for a scale that does not depend on the dimension. Of finite
    batches it is too high by their sampling error, which falls with the batch size.

    Args:
        projections: directions (P, D), of length 1.
        generator: draws `num_projections` directions where none are given.

    Raises:
        ValueError: dimensions differ, a batch has no sample, p is below 1, or not one of projections and generator is given.
    """
    x, y = _flat(x, y, 1)
    if p < 1:
        raise ValueError(f"p {p:g}: takes at least 1")
    if projections is None:
        if generator is None:
            raise ValueError("sliced_wasserstein: takes projections, or a generator that draws them")
        projections = random_projections(num_projections, x.shape[1], generator)
    elif generator is not None:
        raise ValueError("sliced_wasserstein: takes projections or a generator, not both")
    if projections.shape[1:] != x.shape[1:]:
        raise ValueError(f"projections {tuple(projections.shape)}: takes {x.shape[1]} columns, as the samples have")
    along = projections.to(x).T
    return _wasserstein_of_columns(x @ along, y @ along, p).mean()


def patch_projections(count: int, channels: int, size: int, generator: torch.Generator, *, centred: bool = False) -> Tensor:
    """Directions (count, channels, size, size) of length 1 along which patches are compared; `centred` ones sum to 0.

    Along centred ones brightness and colour do not count, only what changes within a patch.
    """
    lines = torch.randn(count, channels * size * size, generator=generator, device=generator.device)
    lines = lines - lines.mean(1, keepdim=True) if centred else lines
    return unit(lines, 1).unflatten(1, (channels, size, size))


@in_float32
def patch_sliced_wasserstein(
    pictures: Tensor, others: Tensor, projections: Tensor, *, paired: bool = True, levels: int = 2, stride: int = 1
) -> Tensor:
    """How far the patches of pictures are, as a set, from those of others: a scalar, at least 0, in the pictures' units.

    The Wasserstein distance (p = 1) along each line, by sorting, averaged over lines and over the levels of a pyramid that
    halves the edges (Elnekave & Weiss 2022, section 3.2; the pyramid: Karras et al. 2018, section 5). Where a patch lies does
    not count, and no blurred picture has sharp ones: a distance pixel by pixel is least at the mean of what may be there, this
    one is not.

    Args:
        pictures, others: (B, C, H, W).
        projections: (P, C, k, k), see `patch_projections`.
        paired: each picture is held against its own other; else all pictures are one set, and all others are another.
        stride: from one patch to the next.

    Raises:
        ValueError: the shapes differ, or the smallest level is smaller than a patch.
    """
    check_shapes(pictures, others, "pictures")
    smallest, size = min(pictures.shape[2:]) >> max(levels - 1, 0), max(projections.shape[2:])
    if levels < 1 or smallest < size:
        raise ValueError(f"levels {levels}: takes 1 or more, the smallest of which holds a patch of {size} pixels")
    distances = []
    for level in range(levels):
        if level:
            pictures, others = F.avg_pool2d(pictures, 2), F.avg_pool2d(others, 2)
        ours, theirs = (_along(of, projections, paired, stride) for of in (pictures, others))
        distances.append((ours - theirs).abs().mean())
    return torch.stack(distances).mean()


def _along(pictures: Tensor, projections: Tensor, paired: bool, stride: int) -> Tensor:
    """Where the patches lie on each line, sorted: (B, P, places), or (P, B * places)."""
    places = F.conv2d(pictures, projections.to(pictures), stride=stride).flatten(2)
    return (places if paired else places.transpose(0, 1).flatten(1)).sort(-1).values


def _wasserstein_of_columns(x: Tensor, y: Tensor, p: float) -> Tensor:
    """W_p^p between the columns of (N, P) and (M, P), (P,): the integral of the difference of their quantile functions."""
    n, m = len(x), len(y)
    steps = [torch.arange(1, n + 1, device=x.device) * m, torch.arange(1, m + 1, device=x.device) * n]
    ends = torch.cat(steps).unique()  # where either quantile function steps, in units of 1 / (N M)
    widths = ends.diff(prepend=ends.new_zeros(1)).to(x) / (n * m)
    x, y = x.sort(dim=0).values[(ends - 1) // m], y.sort(dim=0).values[(ends - 1) // n]
    return widths @ (x - y).abs().pow(p)


def _mmd(x: Tensor, y: Tensor, kernel: Kernel, unbiased: bool) -> Tensor:
    return _mean_within(kernel(x, x), unbiased) + _mean_within(kernel(y, y), unbiased) - 2 * kernel(x, y).mean()


def _mean_within(matrix: Tensor, unbiased: bool) -> Tensor:
    if not unbiased:
        return matrix.mean()
    return (matrix.sum() - matrix.diagonal().sum()) / (len(matrix) * (len(matrix) - 1))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # not by |x|^2 + |y|^2 - 2 x . y, which loses small distances to rounding
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _flat(x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    for batch in (x, y):
        check_batch(batch, least, "this distance")
    x, y = x.flatten(1), y.flatten(1)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"dimension {x.shape[1]}: takes that of the other batch, {y.shape[1]}")
    return x, y
