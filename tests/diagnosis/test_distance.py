"""MID and MMD against plain loops in float64, and planes against their definition."""

import builtins
import math

import numpy as np
import pytest

from edgecil.diagnosis import distance
from edgecil.diagnosis.distance import (
    bandwidth,
    mean_image_distance,
    neighbour_plane,
    principal_plane,
    squared_mmd,
)
from edgecil.errors import DependencyMissing


def sample(count, width=5, seed=0, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1.5, (count, width)).astype(np.float32)


def plain_mid(a, b):
    """ABD eq. (10), number by number; features that are constant over ``a`` are left out."""
    total = 0.0
    for column in range(a.shape[1]):
        left, right = ([float(v) for v in s[:, column]] for s in (a, b))
        mu = sum(left) / len(left)
        variance = sum((v - mu) ** 2 for v in left) / len(left)
        if variance:
            total += (mu - sum(right) / len(right)) ** 2 / variance
    return math.sqrt(total)


def plain_mmd(a, b, sigma):
    """Gretton et al. 2012, eq. (3), pair by pair."""

    def kernel(x, y):
        return math.exp(
            -sum((float(p) - float(q)) ** 2 for p, q in zip(x, y, strict=True)) / (2 * sigma**2)
        )

    def within(s):
        pairs = [kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]
        return sum(pairs) / len(pairs)

    across = [kernel(x, y) for x in a for y in b]
    return within(a) + within(b) - 2 * sum(across) / len(across)


@pytest.mark.parametrize(("m", "n"), [(7, 4), (2, 9), (12, 12)])
def test_both_distances_equal_plain_loops(m, n, monkeypatch):
    monkeypatch.setattr(distance, "_BLOCK", 3)  # several blocks, the last one smaller
    a, b = sample(m), sample(n, seed=1, shift=0.7)
    a[:, 2] = 0.25  # a unit that is silent on the reference
    assert mean_image_distance(a, b) == pytest.approx(plain_mid(a, b), rel=1e-12)
    assert squared_mmd(a, b, 1.3) == pytest.approx(plain_mmd(a, b, 1.3), rel=1e-10, abs=1e-13)


def test_mid_is_in_deviations_of_the_reference_and_not_symmetric():
    a = sample(400)
    assert mean_image_distance(a, a) == 0
    assert mean_image_distance(10 * a, 10 * a + 10) == pytest.approx(
        mean_image_distance(a, a + 1), rel=1e-5
    )
    b = 4 * a + 1
    assert mean_image_distance(a, b) > 2 * mean_image_distance(b, a)


def test_mmd_is_about_zero_for_one_distribution_and_may_be_negative():
    values = [
        squared_mmd(sample(60, seed=s), sample(60, seed=s + 100), sigma=3.0) for s in range(20)
    ]
    assert min(values) < 0 < max(values) and abs(np.mean(values)) < 0.01
    assert squared_mmd(sample(60), sample(60, seed=1, shift=2.0), sigma=3.0) > 0.3


def test_the_bandwidth_is_the_median_distance_within_the_reference():
    rows = sample(31)
    pairs = [np.linalg.norm(rows[i] - rows[j]) for i in range(31) for j in range(i)]
    assert bandwidth(rows) == pytest.approx(np.median(pairs), rel=1e-5)
    many = sample(distance.MEDIAN_ROWS + 500, width=2)
    assert bandwidth(many) == pytest.approx(bandwidth(many[: distance.MEDIAN_ROWS]), rel=0.1)


def test_what_cannot_be_measured_is_nan():
    one, none, flat = sample(1), sample(0), np.ones((5, 3), np.float32)
    assert math.isnan(mean_image_distance(none, one)) and math.isnan(mean_image_distance(one, none))
    assert math.isnan(mean_image_distance(flat, flat + 1))
    assert math.isnan(bandwidth(one)) and math.isnan(bandwidth(flat))
    assert math.isnan(squared_mmd(one, sample(4), 1.0))
    assert math.isnan(squared_mmd(sample(4), sample(4), bandwidth(flat)))


def test_the_principal_plane_is_that_of_the_covariance():
    rows = sample(50) * np.array([5, 1, 3, 0.5, 0.1], np.float32)
    plane = principal_plane(rows)
    values = np.sort(np.linalg.eigvalsh(np.cov(rows.T.astype(np.float64))))[::-1]
    assert np.allclose(plane.points.var(axis=0, ddof=1), values[:2])
    assert np.allclose(plane.shares, values[:2] / values.sum())
    assert np.allclose(principal_plane(rows + 7).points, plane.points, atol=1e-5)
    assert principal_plane(np.ones((4, 3), np.float32)).shares == (0.0, 0.0)


def test_neighbours_stay_neighbours_and_few_rows_will_do():
    pytest.importorskip("sklearn")
    rows = np.concatenate([sample(12), sample(12, seed=1, shift=30.0)])
    points = neighbour_plane(rows).points
    gaps = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(gaps, np.inf)
    assert ((gaps.argmin(axis=1) < 12) == (np.arange(24) < 12)).all()
    assert neighbour_plane(rows[:3]).points.shape == (3, 2)


def test_without_scikit_learn_the_way_to_install_it_is_told(monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments, **rest):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *arguments, **rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DependencyMissing, match="scikit-learn") as caught:
        neighbour_plane(sample(9))
    assert "edgecil[demo]" in caught.value.hint
