"""Class orders against the first classes that are published for each protocol."""

from __future__ import annotations

import random

import numpy as np
import pytest

from edgecil.data.orders import (
    equal_sizes,
    icarl_theano_order,
    increments,
    inverse,
    natural_order,
    numpy_order,
    random_order,
    split_sizes,
)
from edgecil.errors import UsageError

CIFAR_1993 = [68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89, 3, 92, 55, 9, 26, 80, 43, 38]
THEANO = [87, 0, 52, 58, 44, 91, 68, 97, 51, 15, 94, 92, 10, 72, 49, 78, 61, 14, 8, 86]


@pytest.mark.parametrize(
    ("order", "first"),
    [
        (numpy_order(100), CIFAR_1993),
        (icarl_theano_order(), THEANO),
        (random_order(100, 0), [23, 8, 11, 7, 48, 13, 1, 91, 94, 54]),
        (random_order(100, 1), [53, 37, 65, 51, 4, 20, 38, 9, 10, 81]),
        (random_order(100, 2), [0, 76, 61, 63, 1, 71, 2, 6, 16, 19]),
        (random_order(200, 0), [131, 181, 22, 172, 144, 92, 97, 187, 58, 93]),
        (random_order(200, 1), [33, 146, 79, 19, 23, 131, 12, 187, 174, 32]),
        (random_order(200, 2), [51, 94, 55, 35, 170, 177, 20, 85, 50, 36]),
        (numpy_order(100, 1988), [77, 15, 76, 6, 86]),
        (numpy_order(200, 1993), [168, 136, 51, 9, 183]),
        (numpy_order(1000, 1993), [54, 7, 894, 512, 126, 337, 988, 11]),
        (inverse(numpy_order(100)), [69, 23, 57, 12, 89, 87, 34, 84, 3, 15]),
        (natural_order(100), [0, 1, 2, 3]),
    ],
)
def test_published_first_classes(order: list[int], first: list[int]) -> None:
    assert order[: len(first)] == first
    assert sorted(order) == list(range(len(order)))
    assert all(type(c) is int for c in order)


def test_global_random_state_is_left_alone() -> None:
    np.random.seed(4)
    random.seed(4)
    expected = np.random.rand(), random.random()
    np.random.seed(4)
    random.seed(4)
    numpy_order(10), icarl_theano_order(), random_order(10, 0)
    assert (np.random.rand(), random.random()) == expected


def test_inverse_undoes() -> None:
    order = numpy_order(30, 5)
    assert [order[place] for place in inverse(order)] == natural_order(30)


@pytest.mark.parametrize(
    ("name", "count", "sizes"),
    [
        ("B0-5", 100, [20] * 5),
        ("B0-20", 100, [5] * 20),
        ("B50-5", 100, [50] + [10] * 5),
        ("b50-25", 100, [50] + [2] * 25),
        ("B0-3", 10, [4, 3, 3]),
        ("B5-2", 10, [5, 3, 2]),
        ("B0-1", 7, [7]),
    ],
)
def test_splits(name: str, count: int, sizes: list[int]) -> None:
    assert split_sizes(name, count) == sizes
    assert sum(sizes) == count


@pytest.mark.parametrize("name", ["B50", "50-5", "B0-0", "B100-1", "B0-101", "B-1-5", ""])
def test_impossible_splits_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        split_sizes(name, 100)


def test_increments_are_consecutive_and_may_be_uneven() -> None:
    order = numpy_order(10)
    parts = increments(order, [1, 6, 3])
    assert [len(p) for p in parts] == [1, 6, 3]
    assert [c for part in parts for c in part] == order
    assert increments(order, equal_sizes(10, 2)) == [order[:5], order[5:]]
    for sizes in ([5, 4], [5, 0, 5], [5, 6], []):
        with pytest.raises(UsageError):
            increments(order, sizes)
