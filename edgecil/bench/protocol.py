"""What is learned in which order and with which settings: protocols, read from TOML files."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Self

from edgecil.data import orders
from edgecil.errors import DataError, UsageError
from edgecil.settings import Augment, Optim, Preprocess, Schedule, Training
from edgecil.spelling import nearest

SUFFIX = ".toml"
_ORDER = re.compile(r"natural|icarl-theano|(inverse )?numpy \d+|python (\d+|run)")
_SUBSET = re.compile(r"all|(sorted|devkit|choice) \d+")


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
                f"{self.name}: unknown class order {self.order!r}",
                hint="natural, numpy 1993 or python run",
            )
        if not _SUBSET.fullmatch(self.subset):
            raise UsageError(
                f"{self.name}: unknown subset {self.subset!r}", hint="all, sorted 100 or choice 100"
            )
        if self.subset.startswith("devkit") and self.layout != "imagenet-devkit":
            raise UsageError(f"{self.name}: {self.subset!r} needs the layout imagenet-devkit")

    def class_names(self, known: Sequence[str], seed: int) -> list[str]:
        """Return the classes of the data set that take part, in order of introduction.

        ``known`` are all its classes in the data set's own order.

        Raises:
            DataError: the data set has fewer classes than the protocol.
        """
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


_KEYS = tuple(f.name for f in fields(Protocol) if f.name != "name")
"""What a file may say of a protocol."""


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


def parse(name: str, text: str) -> dict[str, Protocol]:
    """Return the protocols in the text of a TOML file, by name.

    A file describes one, called ``name``; or several, called ``<name>-<split>``, of which each
    table ``[splits.<split>]`` says what is its own.

    Raises:
        UsageError: not TOML, or a key that no protocol has.
    """
    file = f"{name}{SUFFIX}"
    try:
        values = tomllib.loads(text)
        splits = values.pop("splits", None)
        if splits is None:
            return {name: _made(name, values, file)}
        _check_keys(file, values, (*_KEYS, "splits"), ("summary",))
        found = {}
        for split, own in _table(f"{file}, [splits]", splits).items():
            where = f"{file}, [splits.{split}]"
            _check_keys(where, own, _KEYS, ("split",))
            summary = f"{values['summary']}: {own['split']}"
            made = f"{name}-{split}"
            found[made] = _made(
                made, {**values, **own, "summary": summary}, file, split, tuple(own)
            )
        return found
    except (tomllib.TOMLDecodeError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None


def _table(where: str, values: Any) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: expected a table, got {values!r}")
    return values


def _check_keys(
    where: str, values: Any, known: Sequence[str], required: Sequence[str] = ()
) -> None:
    """Refuse a table with a key that is not known, or without one that is required."""
    unknown = next((key for key in _table(where, values) if key not in known), None)
    if unknown is not None:
        raise UsageError(f"{where}: unknown key {unknown!r}", hint=nearest(unknown, tuple(known)))
    missing = next((key for key in required if key not in values), None)
    if missing is not None:
        raise UsageError(f"{where}: the key {missing!r} is missing")


def _names(cls: type[Any]) -> list[str]:
    return [f.name for f in fields(cls)]


def _made(
    name: str, values: Mapping[str, Any], file: str, split: str = "", own: Sequence[str] = ()
) -> Protocol:
    """Return a protocol; the tables ``own`` are written below that of its ``split``."""
    _check_keys(file, values, (*_KEYS, "splits"), ("summary", "layout", "split"))
    made = _frozen(values)
    readers: dict[str, Callable[[str, Any], Any]] = {
        "training": _training,
        "augment": _augment,
        "preprocess": _preprocess,
        "published": _published,
    }
    for key, read in readers.items():
        if key in made:
            place = f"splits.{split}.{key}" if key in own else key
            made[key] = read(f"{file}, [{place}]", made[key])
    return Protocol(name, **made)


def _augment(where: str, values: Any) -> Augment:
    _check_keys(where, values, _names(Augment))
    return Augment(**values)


def _preprocess(where: str, values: Any) -> Preprocess:
    _check_keys(where, values, _names(Preprocess), _names(Preprocess))
    return Preprocess(**values)


def _published(where: str, values: Any) -> dict[str, Published]:
    for method, row in _table(where, values).items():
        _check_keys(f"{where}, {method}", row, _names(Published), ("table",))
    return {method: Published.of(row) for method, row in values.items()}


def _frozen(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a TOML table with tuples in place of lists."""
    return {
        key: tuple(v) if isinstance(v, list) else _frozen(v) if isinstance(v, dict) else v
        for key, v in values.items()
    }


def _training(where: str, values: Any) -> Training:
    """Return a training whose milestones are written as epochs."""
    optim_keys, own = ("lr", "momentum", "weight_decay"), ("schedule", "milestones", "factor")
    training_keys = [name for name in _names(Training) if name != "optim"]
    required = ("epochs",) if "milestones" in _table(where, values) else ()
    _check_keys(where, values, (*training_keys, *optim_keys, *own), required)
    rest = dict(values)
    optim = {k: rest.pop(k) for k in optim_keys if k in rest}
    milestones, factor = rest.pop("milestones", None), rest.pop("factor", 0.1)
    kind = rest.pop("schedule", "cosine")
    if milestones is not None:
        fractions = tuple(m / rest["epochs"] for m in milestones)
        return Training(**rest, optim=Optim(**optim, schedule=Schedule("step", fractions, factor)))
    return Training(**rest, optim=Optim(**optim, schedule=Schedule(kind)))


def families() -> Mapping[str, Mapping[str, Protocol]]:
    """Return the protocols that come with edgecil, those of one file together."""
    folder = resources.files("edgecil.bench") / "protocols"
    found = sorted((p for p in folder.iterdir() if p.name.endswith(SUFFIX)), key=lambda p: p.name)
    names = [p.name.removesuffix(SUFFIX) for p in found]
    return {
        name: parse(name, path.read_text(encoding="utf-8"))
        for name, path in zip(names, found, strict=True)
    }


def protocols() -> Mapping[str, Protocol]:
    """Return the protocols that come with edgecil, by name."""
    return {name: made for members in families().values() for name, made in members.items()}


def protocol(name: str) -> Protocol:
    """Return a protocol by its name, or the one in a TOML file: ``mine.toml``.

    Of a file with several ``mine.toml:b0-5`` is the one with that split.

    Raises:
        UsageError: there is none of that name, or the file cannot be read.
    """
    stem, suffix, split = name.rpartition(SUFFIX)
    if not suffix or (split and not split.startswith(":")):
        return _named(name, protocols())
    try:
        found = parse(Path(stem).name, Path(stem + SUFFIX).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{stem}{SUFFIX}: {error.strerror}") from None
    if len(found) == 1 and not split:
        return next(iter(found.values()))
    own = {key.removeprefix(f"{Path(stem).name}-"): made for key, made in found.items()}
    if not split:
        choices = ", ".join(f"{name}:{key}" for key in own)
        raise UsageError(f"{name} holds {len(own)} protocols", hint=f"choose one: {choices}")
    return _named(split[1:], own)


def _named(name: str, known: Mapping[str, Protocol]) -> Protocol:
    if name not in known:
        raise UsageError(f"unknown protocol {name!r}", hint=nearest(name, tuple(known)))
    return known[name]
