"""Orders in which published protocols introduce classes, and how they split them.

All are pure functions of their arguments, independent of global random state and of library
versions: numpy's ``RandomState`` and Python's ``random`` are frozen by promise.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import numpy as np

from edgecil.errors import UsageError


def natural_order(count: int) -> list[int]:
    """Return the classes 0 to ``count`` - 1 as they are (MFGR)."""
    return list(range(count))


def numpy_order(count: int, seed: int = 1993) -> list[int]:
    """Return the order of ``numpy.random.seed(seed); numpy.random.shuffle(arange(count))``.

    Seed 1993 is the order of LUCIR, Mnemonics, BiC, PyCIL and FACIL; over 1,000 classes its
    first 50 are ABD's ImageNet-50. Seed 1988 is MUC's on CIFAR-100.
    """
    order = np.arange(count)
    np.random.RandomState(seed).shuffle(order)
    return [int(c) for c in order]


def icarl_theano_order() -> list[int]:
    """Return the order of the 100 CIFAR classes in run 0 of iCaRL's own code.

    It shuffles the 500 training images of each class with the same generator before it
    shuffles the classes.
    """
    generator = np.random.RandomState(1993)
    for _ in range(100):
        generator.shuffle(np.arange(500))
    order = np.arange(100)
    generator.shuffle(order)
    return [int(c) for c in order]


def random_order(count: int, seed: int) -> list[int]:
    """Return the order of Python's ``random.seed(seed); random.shuffle(list(range(count)))``.

    Seeds 0, 1 and 2 are ABD's three trials on CIFAR-100 (100 classes) and Tiny-ImageNet (200).
    """
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def chosen_classes(count: int, size: int, seed: int = 1993) -> list[int]:
    """Return ``numpy.random.seed(seed); numpy.random.choice(count, size, replace=False)``, sorted.

    Over the sorted folders of ImageNet: LUCIR's and Mnemonics' ImageNet-Subset of 100 classes.
    Their code copies the drawn folders and reads the copy in order of name, so the order of the
    draw is lost; the subset is shuffled as any other data set.
    """
    drawn = np.random.RandomState(seed).choice(count, size, replace=False)
    return sorted(int(c) for c in drawn)


def inverse(order: Sequence[int]) -> list[int]:
    """Return the inverse permutation: where each class stands in ``order``.

    iCaRL's TensorFlow code takes the inverse of ``numpy_order(100)`` as its order.
    """
    places = [0] * len(order)
    for place, item in enumerate(order):
        places[item] = place
    return places


def equal_sizes(count: int, increments: int, base: int = 0) -> list[int]:
    """Return the classes of each increment: ``base`` first (when > 0), the rest in equal parts.

    Where the parts cannot be equal the first ones have one class more.

    Raises:
        UsageError: fewer classes than increments.
    """
    rest = count - base
    if increments < 1 or base < 0 or rest < increments:
        raise UsageError(f"cannot make {increments} increments of {rest} classes")
    whole, more = divmod(rest, increments)
    sizes = [whole + (i < more) for i in range(increments)]
    return [base, *sizes] if base else sizes


def split_sizes(name: str, count: int) -> list[int]:
    """Return the classes of each increment of a split such as ``B0-10`` or ``B50-5``.

    ``B<b>-<n>`` learns b classes first and the others in n equal increments.

    Raises:
        UsageError: not such a name, or it does not fit ``count`` classes.
    """
    match = re.fullmatch(r"[Bb](\d+)-(\d+)", name)
    if match is None:
        raise UsageError(f"{name!r} is not a split", hint="write it like B0-10 or B50-5")
    return equal_sizes(count, int(match[2]), int(match[1]))


def increments(order: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Return the classes of each increment: consecutive parts of ``order``, of any sizes.

    Raises:
        UsageError: a size below 1, or sizes that do not add up to the order's length.
    """
    if min(sizes, default=0) < 1 or sum(sizes) != len(order):
        raise UsageError(f"increments of {list(sizes)} do not make {len(order)} classes")
    parts, start = [], 0
    for size in sizes:
        parts.append(list(order[start : start + size]))
        start += size
    return parts
