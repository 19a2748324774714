"""What is learned in which order and with which settings: protocols, read from TOML files."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Self

from edgecil.data import orders
from edgecil.errors import UsageError
from edgecil.options import nearest
from edgecil.settings import Augment, Optim, Schedule, Training

SUFFIX = ".toml"


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
    """Which classes of the data set take part: ``all``, ``sorted N`` (the first N names) or
    ``choice N`` (numpy's ``choice`` with seed 1993 over the sorted names)."""
    source: str = ""
    """The paper, and where it says so."""
    arch: str = "auto"
    image_size: int | None = None
    epochs: int | None = None
    preset: str | None = None
    """Preset that methods use where they have it, for options of their own."""
    training: Training | None = None
    augment: Augment | None = None
    exemplars_total: int | None = None
    exemplars_per_class: int | None = None
    notes: tuple[str, ...] = ()
    """What the paper leaves open and what was chosen."""

    @classmethod
    def from_toml(cls, name: str, text: str) -> Self:
        """Return the protocol in the text of a TOML file.

        Raises:
            UsageError: not TOML, or a key that no protocol has.
        """
        try:
            values = tomllib.loads(text)
            known = [f.name for f in fields(cls) if f.name != "name"]
            for key in values:
                if key not in known:
                    raise UsageError(f"{name}: unknown key {key!r}", hint=nearest(key, known))
            made: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
            }
            if "training" in made:
                made["training"] = _training(made["training"])
            if "augment" in made:
                made["augment"] = Augment(**made["augment"])
            return cls(name, **made)
        except (tomllib.TOMLDecodeError, TypeError) as error:
            raise UsageError(f"protocol {name} cannot be read: {error}") from None

    def class_names(self, known: Sequence[str], seed: int) -> list[str]:
        """Return the classes of the data set that take part, in order of introduction.

        ``known`` are all its classes in the data set's own order.
        """
        chosen = _subset(self.subset, known)
        return [chosen[i] for i in _order(self.order, len(chosen), seed)][: self.classes]

    def sizes(self, count: int) -> tuple[int, ...]:
        """Return how many classes each increment adds.

        Raises:
            UsageError: the split does not fit ``count`` classes.
        """
        if isinstance(self.split, str):
            return tuple(orders.split_sizes(self.split, count))
        orders.increments(range(count), self.split)
        return self.split


def _training(values: dict[str, Any]) -> Training:
    """Return a training whose milestones are written as epochs."""
    optim: dict[str, Any] = {
        k: values.pop(k) for k in ("lr", "momentum", "weight_decay") if k in values
    }
    milestones, factor = values.pop("milestones", None), values.pop("factor", 0.1)
    if milestones is not None:
        fractions = tuple(m / values["epochs"] for m in milestones)
        optim["schedule"] = Schedule("step", fractions, factor)
    return Training(**values, optim=Optim(**optim))


def _order(text: str, count: int, seed: int) -> list[int]:
    kind, _, number = text.rpartition(" ") if " " in text else (text, "", "")
    if text == "natural":
        return orders.natural_order(count)
    if text == "icarl-theano":
        return orders.icarl_theano_order()
    if kind == "numpy":
        return orders.numpy_order(count, int(number))
    if kind == "inverse numpy":
        return orders.inverse(orders.numpy_order(count, int(number)))
    if kind == "python":
        return orders.random_order(count, seed if number == "run" else int(number))
    raise UsageError(f"unknown class order {text!r}", hint="natural, numpy 1993 or python run")


def _subset(text: str, known: Sequence[str]) -> list[str]:
    kind, _, number = text.partition(" ")
    if text == "all":
        return list(known)
    if kind == "sorted":
        return sorted(known)[: int(number)]
    if kind == "choice":
        return [sorted(known)[i] for i in orders.chosen_classes(len(known), int(number))]
    raise UsageError(f"unknown subset {text!r}", hint="all, sorted 100 or choice 100")


def protocols() -> Mapping[str, Protocol]:
    """Return the protocols that come with edgecil, by name."""
    folder = resources.files("edgecil.bench") / "protocols"
    found = sorted((p for p in folder.iterdir() if p.name.endswith(SUFFIX)), key=lambda p: p.name)
    names = [p.name.removesuffix(SUFFIX) for p in found]
    return {
        name: Protocol.from_toml(name, path.read_text(encoding="utf-8"))
        for name, path in zip(names, found, strict=True)
    }


def protocol(name: str) -> Protocol:
    """Return a protocol by its name, or the one in a TOML file.

    Raises:
        UsageError: there is none of that name, or the file cannot be read.
    """
    if name.endswith(SUFFIX):
        try:
            return Protocol.from_toml(Path(name).stem, Path(name).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{name}: {error.strerror}") from None
    known = protocols()
    if name not in known:
        raise UsageError(f"unknown protocol {name!r}", hint=nearest(name, list(known)))
    return known[name]
