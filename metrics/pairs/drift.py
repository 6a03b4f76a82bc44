"""Distances of a student's representation from its teacher's: kernel alignment, the best rotation, means and covariances.

Everything is computed in float64. Features are (N, D), one row per sample. If two sets are of *the same* samples, row k
of both is sample k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gendistill.metrics.distances.frechet import frechet_distance
from gendistill.metrics.features.gaussian import GaussianStatistics, gaussian_statistics
from gendistill.metrics.features.matrix import Features, Matrix, feature_matrices, feature_matrix


@dataclass(frozen=True)
class Procrustes:
    """Distances of two sets of features of the same samples, each centred and scaled to length 1, after and before rotation.

    Attributes:
        distance: squared distance after the best rotation, in [0, 2]; 0 if one set is the other, rotated, scaled and shifted.
        unrotated: squared distance without rotation, in [0, 4].
        rotation: (D, D), orthogonal (it may mirror): the student's centred rows times this lie nearest to the teacher's.
    """

    distance: float
    unrotated: float
    rotation: Matrix


@dataclass(frozen=True)
class MomentDrift:
    """Distances of the mean and the covariance of a student's features from the teacher's; all are 0 if these are equal.

    Attributes:
        mean: distance of the means, in units of the teacher's standard deviation (the root of its total variance).
        covariance: Frobenius distance of the covariances, divided by the norm of the teacher's.
        bures: tr(S_t + S_s - 2 (S_t S_s)^(1/2)), the covariances' part of the Fréchet distance, divided by the teacher's total
            variance.
    """

    mean: float
    covariance: float
    bures: float


def linear_cka(a: Features, b: Features, *, unbiased: bool = False) -> float:
    """Linear centred kernel alignment of the same samples' features (N, D) and (N, E) (Kornblith et al. 2019, eq. 3).

    It is 1 if one set is the other after a rotation, a uniform scaling and a shift. It needs memory for N x N numbers,
    whatever D and E are.

    Args:
        unbiased: use the unbiased HSIC (Song et al. 2012, eq. 5; Nguyen et al. 2021, eq. 3), which is 0 on average for
            independent features; the biased one approaches 1 if D is much larger than N. The range is then [-1, 1] instead
            of [0, 1].

    Raises:
        ValueError: fewer than 2 samples (4 if unbiased), different numbers of samples, features that are not finite, or
            features that are the same for all samples.
    """
    min_rows = 4 if unbiased else 2
    x, y = feature_matrix(a, "a", min_rows), feature_matrix(b, "b", min_rows)
    if len(x) != len(y):
        raise ValueError(f"a and b: got {len(x)} and {len(y)} samples, expects the same samples in both.")
    grams = []
    for name, features in (("a", x), ("b", y)):
        centred = _unit(_centred(features, name))  # of length 1, so that no product over- or underflows
        grams.append(_u_centred(centred @ centred.T) if unbiased else centred @ centred.T)
    k, ell = grams
    lengths = np.linalg.norm(k) * np.linalg.norm(ell)
    if lengths == 0:
        raise ValueError("a and b: got the same features for all samples, expects features that differ.")
    return float(np.clip((k * ell).sum() / lengths, -1, 1))


def orthogonal_procrustes(teacher: Features, student: Features) -> Procrustes:
    """Distance of the same samples' features (N, D) after the best rotation (Ding et al. 2021, eq. 2).

    Both sets are first centred and scaled to Frobenius norm 1, so that the distance is symmetric and in [0, 2]:
    2 - 2 |T^T S|_*, with the nuclear norm (Schönemann 1966). With fewer samples than features nearly any two sets can be
    rotated onto each other, so the distance is meaningful only for N much larger than D.

    Raises:
        ValueError: fewer than 2 samples, different numbers of samples or of features, features that are not finite, or
            features that are the same for all samples.
    """
    t, s = _same_samples(teacher, student, min_rows=2)
    t, s = _unit(_centred(t, "teacher")), _unit(_centred(s, "student"))
    left, singular, right = np.linalg.svd(s.T @ t)
    # A small distance is computed from the differences: 2 - 2 x would be only rounding error.
    rotation = left @ right
    direct = float(np.square(t - s @ rotation).sum())
    return Procrustes(min(direct, max(2 - 2 * float(singular.sum()), 0.0)), float(np.square(t - s).sum()), rotation)


def moment_drift(teacher: Features, student: Features) -> MomentDrift:
    """Drift of the moments of features (N, D) and (M, D), which need not be of the same samples.

    Raises:
        ValueError: fewer than 2 samples, different numbers of features, features that are not finite, or teacher features that
            are the same for all samples.
    """
    a, b = feature_matrices(teacher, student, ("teacher", "student"))
    _centred(a, "teacher")
    t, s = gaussian_statistics(a), gaussian_statistics(b)
    variance, zero = float(np.trace(t.covariance)), np.zeros(t.dim)
    bures = frechet_distance(GaussianStatistics(zero, t.covariance, t.count), GaussianStatistics(zero, s.covariance, s.count))
    return MomentDrift(
        float(np.linalg.norm(s.mean - t.mean) / np.sqrt(variance)),
        float(np.linalg.norm(s.covariance - t.covariance) / np.linalg.norm(t.covariance)),
        bures / variance,
    )


def mean_cosine(teacher: Features, student: Features) -> float:
    """The mean over samples (N, D) of the cosine between a sample's two vectors, in [-1, 1].

    Raises:
        ValueError: no sample, different numbers of samples or of features, features that are not finite, or a vector of zeros.
    """
    t, s = _same_samples(teacher, student)
    lengths = np.linalg.norm(t, axis=1) * np.linalg.norm(s, axis=1)
    if not lengths.all():
        raise ValueError("teacher and student: got a row of zeros, expects vectors with a direction.")
    return float(np.clip((t * s).sum(axis=1) / lengths, -1, 1).mean())


def latent_psnr(teacher: Features, student: Features) -> float:
    """PSNR in dB of a student's latents (N, D) against the teacher's, from the mean squared error over all of them.

    Latents have no fixed maximum, so the peak is the teacher's range, its maximum minus its minimum. The PSNR of equal
    latents is infinite.

    Raises:
        ValueError: no sample, different numbers of samples or of features, features that are not finite, or constant teacher
            latents.
    """
    t, s = _same_samples(teacher, student)
    peak = float(t.max() - t.min())
    if peak == 0:
        raise ValueError("teacher: got constant latents, expects latents that vary.")
    error = float(np.square(t - s).mean())
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


def _same_samples(teacher: Features, student: Features, min_rows: int = 1) -> tuple[Matrix, Matrix]:
    t, s = feature_matrices(teacher, student, ("teacher", "student"), min_rows)
    if len(t) != len(s):
        raise ValueError(f"teacher and student: got {len(t)} and {len(s)} samples, expects the same samples in both.")
    return t, s


def _centred(features: Matrix, name: str) -> Matrix:
    """The features minus their mean; ValueError if only rounding error is left, which has no meaningful direction."""
    centred = features - features.mean(axis=0)
    if np.linalg.norm(centred) <= 1e-14 * np.linalg.norm(features):
        raise ValueError(f"{name}: got the same features for all samples, expects features that differ.")
    return centred


def _unit(features: Matrix) -> Matrix:
    """The features scaled to Frobenius norm 1."""
    features = features / np.abs(features).max()
    return features / np.linalg.norm(features)


def _u_centred(gram: Matrix) -> Matrix:
    """The U-centred Gram matrix (N, N): the sum of its products with another is their unbiased HSIC times N (N - 3).

    U-centring (Székely & Rizzo 2014, definition 2) turns the three terms of Song et al. 2012, eq. 5 into one.
    """
    count = len(gram)
    k = gram.copy()
    np.fill_diagonal(k, 0)
    rows = k.sum(axis=0) / (count - 2)
    k = k - rows[:, None] - rows[None, :] + k.sum() / ((count - 1) * (count - 2))
    np.fill_diagonal(k, 0)
    return k
