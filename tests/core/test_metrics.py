"""Measures against plain Python, on uneven tasks and on the small cases that break others."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from edgecil import metrics

SIZES = (50, 10, 10, 1, 2)


def toy(groups, per_class, seed=0):
    """Return labels and predictions of made-up images, the number per class varying."""
    draw = random.Random(seed)
    classes = sum(groups)
    labels = [c for c in range(classes) for _ in range(1 + (c * per_class) % 5)]
    predictions = [c if draw.random() < 0.6 else draw.randrange(classes) for c in labels]
    return np.array(labels), np.array(predictions), classes


@pytest.mark.parametrize("groups", [SIZES, (1,), (2,), (1, 1), (10,) * 5])
def test_counts_and_accuracies_are_those_of_counting(groups):
    labels, predictions, classes = toy(groups, 3)
    counts = metrics.confusion(labels, predictions, classes)
    pairs = list(zip(labels.tolist(), predictions.tolist(), strict=True))
    for true in range(classes):
        for predicted in range(classes):
            assert counts[true, predicted] == pairs.count((true, predicted))
    assert metrics.accuracy(counts) == sum(a == b for a, b in pairs) / len(pairs)
    start = 0
    for size in groups:
        mine = [(a, b) for a, b in pairs if start <= a < start + size]
        hits = sum(a == b for a, b in mine) / len(mine)
        assert metrics.accuracy(counts, slice(start, start + size)) == hits
        start += size
    for c, rate in enumerate(metrics.per_class(counts)):
        mine = [b for a, b in pairs if a == c]
        assert rate == sum(b == c for b in mine) / len(mine)


def test_tasks_are_weighted_by_images():
    labels = np.array([0] * 90 + [1] * 10)
    predictions = np.array([0] * 90 + [0] * 10)
    assert metrics.accuracy(metrics.confusion(labels, predictions, 2)) == 0.9


def test_classes_without_images_are_unknown_not_zero():
    counts = metrics.confusion(np.array([0, 0]), np.array([0, 2]), 3)
    assert metrics.per_class(counts)[0] == 0.5
    assert np.isnan(metrics.per_class(counts)[1:]).all()
    assert math.isnan(metrics.accuracy(counts, slice(1, 3)))
    empty = np.array([], dtype=np.int64)
    assert math.isnan(metrics.accuracy(metrics.confusion(empty, empty, 3)))


def test_average_incremental_accuracy_includes_the_base():
    assert metrics.average([0.9, 0.6, 0.3]) == pytest.approx(0.6)
    assert metrics.average([0.25]) == 0.25


def test_the_mean_of_tasks_weighs_a_small_one_like_a_large_one():
    labels = np.array([0] * 90 + [1] * 10)
    counts = metrics.confusion(labels, np.zeros(100, np.int64), 2)
    tasks = [metrics.accuracy(counts, slice(i, i + 1)) for i in range(2)]
    assert metrics.task_mean(tasks) == 0.5
    assert metrics.accuracy(counts) == 0.9
    assert metrics.task_mean([0.4, math.nan]) == 0.4


def test_both_forgettings_on_a_table_by_hand():
    nan = math.nan
    table = np.array([[0.9, nan, nan], [0.5, 0.8, nan], [0.6, 0.2, 0.7]])
    assert metrics.forgetting(table) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.2)) / 2)
    assert metrics.forgetting(table[:1, :1]) == 0.0
    # What got better is negative forgetting, and the best past value counts.
    better = np.array([[0.5, nan, nan], [0.9, 0.4, nan], [0.7, 0.6, 0.1]])
    assert metrics.forgetting(better) == pytest.approx(((0.9 - 0.7) + (0.4 - 0.6)) / 2)
    assert metrics.forgetting_of_base(0.9, 0.6) == pytest.approx(0.3)


OFFLINE = (0.90, 0.83, 0.80, 0.78, 0.76, 0.745, 0.73, 0.72, 0.71, 0.699)


def test_omega_in_its_plain_form_gives_the_published_base_row():
    # A network that forgets everything: A_i = 0.9 / i. ABD's table has 32.1 for ten tasks.
    forgets = [0.9 / i for i in range(1, 11)]
    assert 100 * metrics.omega(forgets, OFFLINE) == pytest.approx(32.4, abs=0.1)
    assert metrics.omega(OFFLINE, OFFLINE) == 1.0
    with pytest.raises(ValueError, match="2 accuracies, 10 offline"):
        metrics.omega([1.0, 1.0], OFFLINE)


@pytest.mark.parametrize("classes", [1, 2, 4, 5, 6, 40])
def test_top_k_against_sorting(classes):
    draw = np.random.default_rng(classes)
    scores = draw.permutation(classes * 30).reshape(30, classes).astype(np.float32)
    labels = draw.integers(0, classes, 30)
    for k in (1, 2, 5):
        best = np.argsort(-scores, axis=1)[:, :k]
        hits = [label in row for label, row in zip(labels, best.tolist(), strict=True)]
        assert metrics.top_k(scores, labels, k) == sum(hits) / 30
    if classes <= 5:
        assert metrics.top_k(scores, labels) == 1.0
    assert math.isnan(metrics.top_k(scores[:0], labels[:0]))
    assert metrics.top_k(scores[:1], labels[:1], 1) in (0.0, 1.0)  # a last batch of one


def test_accuracy_when_the_task_is_known_includes_each_last_class():
    spans = [slice(0, 2), slice(2, 3), slice(3, 5)]
    scores = np.array(
        [[1, 2, 9, 9, 9], [2, 1, 9, 9, 9], [9, 9, 0, 9, 9], [9, 9, 9, 1, 2], [9, 9, 9, 2, 1]],
        dtype=np.float32,
    )
    labels = np.array([1, 1, 2, 4, 4])
    assert metrics.task_aware(scores, labels, spans) == pytest.approx(3 / 5)
    # Only the images of the classes 0 and 3 are left: ABD's code asks for less than the last one.
    seen = np.array([0, 0, 2, 3, 4])
    assert metrics.task_aware(scores, seen, spans) == pytest.approx(2 / 5)
    assert metrics.task_aware(scores, seen, spans, released=True) == pytest.approx(1 / 3)
    assert math.isnan(metrics.task_aware(scores, labels, spans, released=True))
    assert math.isnan(metrics.task_aware(scores[:0], labels[:0], spans))
