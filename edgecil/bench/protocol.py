"""What is learned in which order and with which settings: protocols."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from edgecil.data import orders
from edgecil.errors import DataError, UsageError
from edgecil.settings import Augment, Preprocess, Training

_ORDER = re.compile(r"natural|icarl-theano|(inverse )?numpy \d+|python (\d+|run)")
_SUBSET = re.compile(r"all|(sorted|devkit|choice) \d+")
_COUNTS = (
    "known", "classes", "image_size", "epochs", "exemplars_total", "exemplars_per_class",
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """What a paper prints for a method, in % as printed there."""

    table: str
    final: float | None = None
    average: float | None = None
    """Mean over all increments, the first included."""
    forgetting_of_base: float | None = None
    omega: float | None = None
    top5: float | None = None
    """Of the last increment."""
    accuracy: tuple[float, ...] = ()
    """After each increment."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return what a table of a TOML file says; accuracies give the final and average ones."""
        accuracy = tuple(values.get("accuracy", ()))
        derived = (
            {"final": accuracy[-1], "average": sum(accuracy) / len(accuracy)} if accuracy else {}
        )
        return cls(**{**derived, **values, "accuracy": accuracy})


@dataclass(frozen=True)
class Protocol:
    """Everything about a comparison but the method, the seed and the folder of the data.

    ``order`` is how the classes are ordered: ``natural``, ``numpy SEED``, ``python SEED``,
    ``python run`` (the run's own seed), ``icarl-theano`` or ``inverse numpy SEED``. ``split``
    is ``B0-10`` and the like or a list of sizes, over the first ``classes`` of the order.
    """

    name: str
    summary: str
    layout: str
    split: str | tuple[int, ...]
    order: str = "numpy 1993"
    known: int | None = None
    """How many classes the whole data set has: a part of it has other subsets and orders."""
    classes: int | None = None
    subset: str = "all"
    """Which classes of the data set take part: ``all``, ``sorted N`` (the first N names),
    ``devkit N`` (ImageNet's first N in the order of its devkit) or ``choice N`` (LUCIR's draw)."""
    source: str = ""
    """The paper, and where it says so."""
    arch: str = "auto"
    image_size: int | None = None
    preprocess: Preprocess | None = None
    weights: str | None = None
    """What the backbone starts from; None: random weights."""
    epochs: int | None = None
    preset: str | None = None
    """Preset that methods use where they have it, for options of their own."""
    training: Training | None = None
    augment: Augment | None = None
    exemplars_total: int | None = None
    exemplars_per_class: int | None = None
    notes: tuple[str, ...] = ()
    """What the paper leaves open and what was chosen."""
    published: Mapping[str, Published] = field(default_factory=dict)
    """Results to compare with, by method as it is written for ``edgecil bench``."""

    def __post_init__(self) -> None:
        if not _ORDER.fullmatch(self.order):
            raise UsageError(
                f"unknown class order {self.order!r}", hint="natural, numpy 1993 or python run"
            )
        if not _SUBSET.fullmatch(self.subset):
            raise UsageError(
                f"unknown subset {self.subset!r}", hint="all, sorted 100 or choice 100"
            )
        if self.subset.startswith("devkit") and self.layout != "imagenet-devkit":
            raise UsageError(f"the subset {self.subset!r} needs the layout imagenet-devkit")
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")

    def class_names(self, known: Sequence[str], seed: int) -> list[str]:
        """Return the classes of the data set that take part, in order of introduction.

        ``known`` are all its classes in the data set's own order.

        Raises:
            DataError: the data set has fewer classes than the protocol, or is another one.
        """
        if self.known not in (None, len(known)):
            raise DataError(
                f"{self.name} is about a data set of {self.known} classes, the data has "
                f"{len(known)}",
                hint="give the whole data set, or write a protocol of your own: docs/protocols.md",
            )
        chosen = _subset(self.subset, known)
        ordered = [chosen[i] for i in _order(self.order, len(chosen), seed)]
        if len(ordered) < (self.classes or 1):
            raise DataError(f"{self.name} has {self.classes} classes, the data {len(ordered)}")
        return ordered[: self.classes]

    def sizes(self, count: int) -> tuple[int, ...]:
        """Return how many classes each increment adds.

        Raises:
            UsageError: the split does not fit ``count`` classes.
        """
        if isinstance(self.split, str):
            return tuple(orders.split_sizes(self.split, count))
        orders.increments(range(count), self.split)
        return self.split


def _order(text: str, count: int, seed: int) -> list[int]:
    """Return the order that ``text`` names, over ``count`` classes."""
    kind, _, number = text.rpartition(" ")
    if kind == "numpy":
        return orders.numpy_order(count, int(number))
    if kind == "inverse numpy":
        return orders.inverse(orders.numpy_order(count, int(number)))
    if kind == "python":
        return orders.random_order(count, seed if number == "run" else int(number))
    if text == "natural":
        return orders.natural_order(count)
    fixed = orders.icarl_theano_order()
    if count != len(fixed):
        raise DataError(f"the order {text} is one of {len(fixed)} classes, the data has {count}")
    return fixed


def _subset(text: str, known: Sequence[str]) -> list[str]:
    """Return the classes that ``text`` names, in the order that the class order permutes."""
    if text == "all":
        return list(known)
    kind, _, number = text.partition(" ")
    count = int(number)
    if count > len(known):
        raise DataError(f"the data has {len(known)} classes, {text!r} needs at least {count}")
    if kind == "devkit":
        return list(known[:count])
    names = sorted(known)
    if kind == "sorted":
        return names[:count]
    return [names[i] for i in orders.chosen_classes(len(names), count)]
