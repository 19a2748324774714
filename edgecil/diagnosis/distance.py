"""How far two samples of features are apart, and where they lie in a plane.

Features are ``(N, D)``: one row per image. Everything is computed in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecil.errors import DependencyMissing

Floats = NDArray[np.float64]
MEDIAN_ROWS = 2000
"""Rows of the reference, evenly spread, whose distances decide the bandwidth."""
_BLOCK = 512


def mean_image_distance(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Return ABD's MID, |(mu_a - mu_b) / sigma_a|_2 (eq. (10)); it is not symmetric.

    ``mu`` are means over images, ``sigma_a`` the standard deviations of the ``reference``
    (divisor N). Features that are constant over the reference have no scale and are left out;
    NaN when all are, or when a sample is empty.
    """
    if not len(reference) or not len(other):
        return float("nan")
    a, b = reference.astype(np.float64), other.astype(np.float64)
    scale = a.std(axis=0)
    usable = scale > 0
    if not usable.any():
        return float("nan")
    shift = (a.mean(axis=0) - b.mean(axis=0))[usable] / scale[usable]
    return float(np.linalg.norm(shift))


def bandwidth(reference: NDArray[Any]) -> float:
    """Return the median Euclidean distance between different rows of the ``reference``.

    Of more than ``MEDIAN_ROWS`` rows so many are used, evenly spread. NaN for fewer than two
    rows, and where most rows coincide: then there is no length to compare with.
    """
    count = len(reference)
    if count < 2:
        return float("nan")
    chosen = np.unique(np.linspace(0, count - 1, min(count, MEDIAN_ROWS)).astype(np.int64))
    rows = reference[chosen].astype(np.float64)
    squares = _squares(rows, rows)
    median = float(np.sqrt(np.median(squares[np.triu_indices(len(rows), 1)])))
    return median if median > 0 else float("nan")


def squared_mmd(reference: NDArray[Any], other: NDArray[Any], sigma: float) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy (ABD appendix B).

    The kernel is exp(-|x - y|^2 / (2 sigma^2)), and a row is not compared with itself
    (Gretton et al. 2012, eq. (3)): the estimate is negative where two samples are alike, and
    no root is taken of it. NaN when a sample has fewer than two rows.
    """
    m, n = len(reference), len(other)
    if m < 2 or n < 2:
        return float("nan")
    a, b = reference.astype(np.float64), other.astype(np.float64)
    within = [(_kernel_sum(x, x, sigma) - len(x)) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return within[0] + within[1] - 2 * _kernel_sum(a, b, sigma) / (m * n)


def _kernel_sum(a: Floats, b: Floats, sigma: float) -> float:
    # In blocks: the whole matrix of ten thousand images would take 800 MB.
    parts = (
        np.exp(_squares(a[start : start + _BLOCK], b) / (-2 * sigma**2)).sum()
        for start in range(0, len(a), _BLOCK)
    )
    return float(sum(parts))


def _squares(a: Floats, b: Floats) -> Floats:
    """Return the squared distances ``(len(a), len(b))``."""
    lengths = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)
    squares: Floats = np.maximum(lengths - 2 * a @ b.T, 0)
    return squares


class Plane(NamedTuple):
    """Features ``(N, 2)`` in a plane and, for PCA, the share of the variance of each axis."""

    points: Floats
    shares: tuple[float, ...] = ()


def principal_plane(features: NDArray[Any]) -> Plane:
    """Return the projection of ``(N, D)`` on its two principal components, D at least 2.

    The sign of each component is such that its largest weight is positive, so that equal
    features give equal pictures.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[np.arange(2), np.abs(axes[:2]).argmax(axis=1)])[:, None]
    variances = lengths**2
    total = float(variances.sum()) or 1.0
    return Plane(centred @ axes.T, tuple((variances[:2] / total).tolist()))


def neighbour_plane(features: NDArray[Any], seed: int = 0) -> Plane:
    """Return the t-SNE embedding of ``(N, D)``, begun at the PCA.

    Raises:
        DependencyMissing: scikit-learn is not installed.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise DependencyMissing(
            "t-SNE needs scikit-learn, which is not installed", hint="pip install 'edgecil[demo]'"
        ) from None
    perplexity = min(30.0, (len(features) - 1) / 3)
    model = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return Plane(np.asarray(model.fit_transform(features.astype(np.float64)), np.float64))
