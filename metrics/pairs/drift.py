"""How far a student's representation lies from its teacher's: kernel alignment, the best rotation, means and covariances.

Everything is computed in float64. Features are (N, D), a row a sample. Where two sets are of *the same* samples, row k of
both is sample k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gendistill.metrics.distances.frechet import frechet_distance
from gendistill.metrics.features.gaussian import GaussianStatistics, gaussian_statistics
from gendistill.metrics.features.matrix import Features, Matrix, feature_matrices, feature_matrix


@dataclass(frozen=True)
class Procrustes:
    """Two sets of features of the same samples, each centred and of length 1, after the best rotation and before it.

    Attributes:
        distance: squared, after the rotation, in [0, 2]; 0 where one set is the other, rotated, scaled and moved.
        unrotated: squared, without any rotation, in [0, 4].
        rotation: (D, D), orthogonal (it may mirror): the student's centred rows times this lie nearest to the teacher's.
    """

    distance: float
    unrotated: float
    rotation: Matrix


@dataclass(frozen=True)
class MomentDrift:
    """How far the mean and the covariance of a student's features are from the teacher's; all are 0 where they are equal.

    Attributes:
        mean: distance of the means, in units of the teacher's standard deviation (the root of its total variance).
        covariance: Frobenius distance of the covariances, as a share of the length of the teacher's.
        bures: tr(S_t + S_s - 2 (S_t S_s)^(1/2)), the covariances' part of the Fréchet distance, as a share of the teacher's
            total variance.
    """

    mean: float
    covariance: float
    bures: float


def linear_cka(a: Features, b: Features, *, unbiased: bool = False) -> float:
    """Linear centred kernel alignment of the same samples' features (N, D) and (N, E) (Kornblith et al. 2019, eq. 3).

    1 where one set is the other after a rotation, one scale for all and a shift. It takes memory for N x N numbers, however
    wide the features are.

    Args:
        unbiased: with the unbiased HSIC (Song et al. 2012, eq. 5; Nguyen et al. 2021, eq. 3), which is 0 on average for
            independent features; the plain one nears 1 where features are wider than samples are many. In [-1, 1] instead of
            [0, 1].

    Raises:
        ValueError: fewer than 2 samples (4 where unbiased), other numbers of samples, features that are not finite, or the
            same for all samples.
    """
    at_least = 4 if unbiased else 2
    x, y = feature_matrix(a, "a", at_least), feature_matrix(b, "b", at_least)
    if len(x) != len(y):
        raise ValueError(f"a and b: got {len(x)} and {len(y)} samples, expects the same samples in both.")
    grams = []
    for name, features in (("a", x), ("b", y)):
        centred = _unit(_centred(features, name))  # of length 1, so that no product over- or underflows
        grams.append(_u_centred(centred @ centred.T) if unbiased else centred @ centred.T)
    k, ell = grams
    lengths = np.linalg.norm(k) * np.linalg.norm(ell)
    if lengths == 0:
        raise ValueError("a and b: got features whose samples cannot be told apart, expects some that differ.")
    return float(np.clip((k * ell).sum() / lengths, -1, 1))


def orthogonal_procrustes(teacher: Features, student: Features) -> Procrustes:
    """The distance that is left after the best rotation (Ding et al. 2021, eq. 2), of the same samples' features (N, D).

    Both sets are centred and scaled to Frobenius length 1 before, so that it is symmetric and in [0, 2]:
    2 - 2 |T^T S|_*, with the nuclear norm (Schönemann 1966). With fewer samples than features nearly any two sets can be
    rotated onto each other: it means something for N much larger than D.

    Raises:
        ValueError: fewer than 2 samples, other numbers of samples or of features, features that are not finite, or the same
            for all samples.
    """
    t, s = _same_samples(teacher, student, at_least=2)
    t, s = _unit(_centred(t, "teacher")), _unit(_centred(s, "student"))
    left, singular, right = np.linalg.svd(s.T @ t)
    # The differences themselves where they are small: 2 - 2 x would leave nothing but rounding there.
    rotation = left @ right
    apart = float(np.square(t - s @ rotation).sum())
    return Procrustes(min(apart, max(2 - 2 * float(singular.sum()), 0.0)), float(np.square(t - s).sum()), rotation)


def moment_drift(teacher: Features, student: Features) -> MomentDrift:
    """Of features (N, D) and (M, D), which need not be of the same samples.

    Raises:
        ValueError: fewer than 2 samples, other numbers of features, features that are not finite, or a teacher's that are the
            same for all samples.
    """
    a, b = feature_matrices(teacher, student, ("teacher", "student"))
    _centred(a, "teacher")
    t, s = gaussian_statistics(a), gaussian_statistics(b)
    variance, still = float(np.trace(t.covariance)), np.zeros(t.dim)
    bures = frechet_distance(GaussianStatistics(still, t.covariance, t.count), GaussianStatistics(still, s.covariance, s.count))
    return MomentDrift(
        float(np.linalg.norm(s.mean - t.mean) / np.sqrt(variance)),
        float(np.linalg.norm(s.covariance - t.covariance) / np.linalg.norm(t.covariance)),
        bures / variance,
    )


def mean_cosine(teacher: Features, student: Features) -> float:
    """The mean over samples (N, D) of the cosine between a sample's two vectors, in [-1, 1].

    Raises:
        ValueError: no sample, other numbers of samples or of features, features that are not finite, or a vector of zeros.
    """
    t, s = _same_samples(teacher, student)
    lengths = np.linalg.norm(t, axis=1) * np.linalg.norm(s, axis=1)
    if not lengths.all():
        raise ValueError("teacher and student: got a row of zeros, expects vectors with a direction.")
    return float(np.clip((t * s).sum(axis=1) / lengths, -1, 1).mean())


def latent_psnr(teacher: Features, student: Features) -> float:
    """PSNR in dB of a student's latents (N, D) against the teacher's, from the mean squared error over all of them.

    Latents have no largest value of their own: the peak is the teacher's range here, the largest minus the least. Infinite
    where both are equal.

    Raises:
        ValueError: no sample, other numbers of samples or of features, features that are not finite, or a teacher's that are
            all one number.
    """
    t, s = _same_samples(teacher, student)
    peak = float(t.max() - t.min())
    if peak == 0:
        raise ValueError("teacher: got one number everywhere, expects latents that differ.")
    error = float(np.square(t - s).mean())
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


def _same_samples(teacher: Features, student: Features, at_least: int = 1) -> tuple[Matrix, Matrix]:
    t, s = feature_matrices(teacher, student, ("teacher", "student"), at_least)
    if len(t) != len(s):
        raise ValueError(f"teacher and student: got {len(t)} and {len(s)} samples, expects the same samples in both.")
    return t, s


def _centred(features: Matrix, name: str) -> Matrix:
    """About their mean; ValueError where nothing but rounding is left, as their direction would mean nothing."""
    centred = features - features.mean(axis=0)
    if np.linalg.norm(centred) <= 1e-14 * np.linalg.norm(features):
        raise ValueError(f"{name}: got the same features for all samples, expects some that differ.")
    return centred


def _unit(features: Matrix) -> Matrix:
    """Of Frobenius length 1."""
    features = features / np.abs(features).max()
    return features / np.linalg.norm(features)


def _u_centred(gram: Matrix) -> Matrix:
    """A Gram matrix (N, N) whose products with others, summed, are their unbiased HSIC times N (N - 3).

    The U-centring of Székely & Rizzo 2014 (definition 2): what Song et al. 2012, eq. 5 says in three terms, in one.
    """
    count = len(gram)
    k = gram.copy()
    np.fill_diagonal(k, 0)
    rows = k.sum(axis=0) / (count - 2)
    k = k - rows[:, None] - rows[None, :] + k.sum() / ((count - 1) * (count - 2))
    np.fill_diagonal(k, 0)
    return k
