"""The contract on kept memory: how much there may be, and how many exemplars that allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgecil.errors import BudgetError, UsageError
from edgecil.memory import codecs
from edgecil.memory.codec import Size


@dataclass(frozen=True)
class Budget:
    """A limit on what is kept: in bytes of the file, or in exemplars; at most one of the three.

    ``bytes`` is the whole file of kept memory, header included. ``per_class`` is a number of
    exemplars for each class, ``total`` one for all classes together.
    """

    bytes: int | None = None
    per_class: int | None = None
    total: int | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) > 1:
            raise UsageError(f"a memory budget is one number, got {given}")
        if any(value < 0 for value in given.values()):
            raise UsageError(f"a memory budget cannot be negative, got {given}")

    @property
    def unlimited(self) -> bool:
        """True when nothing was asked for."""
        return self == Budget()


class Sizes(Protocol):
    """Bytes of the encoded images of one class, best first; may encode when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, rank: int, /) -> int: ...


def choose_count(
    sizes: Sequence[Sizes], budget: int, file_bytes: Callable[[Sequence[int], int], int]
) -> int:
    """Return the largest number of exemplars per class whose whole file fits ``budget`` bytes.

    ``sizes`` holds, class by class, the bytes of each encoded image, best first; a class with
    fewer images gives all it has. ``file_bytes(counts, item bytes)`` is the size of the file
    with so many exemplars per class, header and all other kept fields included.

    Raises:
        BudgetError: not even one exemplar per class fits; the message says what would.
    """
    used = 0
    for count in range(1, max(map(len, sizes), default=0) + 1):
        used += sum(of_class[count - 1] for of_class in sizes if len(of_class) >= count)
        needed = file_bytes([min(count, len(of_class)) for of_class in sizes], used)
        if needed > budget and count == 1:
            raise BudgetError(
                f"one exemplar of each of {len(sizes)} classes takes {needed} bytes,"
                f" the memory budget is {budget} bytes",
                hint=f"--memory-budget {needed}, or a smaller codec",
            )
        if needed > budget:
            return count - 1
    return max(map(len, sizes), default=0)


def count_for(
    budget: Budget, sizes: Sequence[Sizes], file_bytes: Callable[[Sequence[int], int], int]
) -> int:
    """Return the number of exemplars per class that ``budget`` allows; at least 1.

    ``total`` is divided by the classes and rounded down, so that it always holds.

    Raises:
        BudgetError: not even one exemplar per class is allowed.
    """
    longest = max(map(len, sizes), default=0)
    if budget.unlimited or not sizes:
        return longest
    if budget.bytes is not None:
        return choose_count(sizes, budget.bytes, file_bytes)
    classes = len(sizes)
    count = budget.per_class if budget.per_class is not None else (budget.total or 0) // classes
    if count == 0:
        raise BudgetError(
            f"a budget of {budget.total or 0} exemplars leaves none for each of {classes} classes",
            hint=f"--exemplars-total {classes} or more, or a method without exemplars",
        )
    return min(count, longest)


def most_per_class(budget: Budget, classes: int, codec: str, size: Size) -> int | None:
    """Return a number of exemplars per class that ``budget`` cannot exceed; None: no limit.

    Ranking more images than this is wasted work.
    """
    if budget.unlimited or classes == 0:
        return None
    if budget.bytes is None:
        return budget.per_class if budget.per_class is not None else (budget.total or 0) // classes
    least = codecs.item_codec(codec).least("U8", (1, *size, 3))[""][1]
    item_bytes = 1
    for axis in least:
        item_bytes *= axis
    # Half of what a flat image takes: compressors differ in what they like best.
    return budget.bytes // (classes * max(1, item_bytes if codec == "raw" else item_bytes // 2))
