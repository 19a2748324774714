"""Published memory tables: under which conditions, and the figures; read from TOML files."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from edgecil.errors import UsageError
from edgecil.spelling import nearest

SUFFIX = ".toml"


@dataclass(frozen=True)
class Dataset:
    """One column of a published table: images, network, and what was printed for whom."""

    name: str
    arch: str
    preprocess: str
    """Name of a preset of :data:`edgecil.settings.PRESETS`."""
    images_per_class: int
    """Most training images of a class."""
    codecs: tuple[str, ...]
    """How exemplars are stored, one row for each."""
    published: Mapping[str, int]
    """Printed bytes by method."""


@dataclass(frozen=True)
class MemoryProtocol:
    """The conditions of a published memory table."""

    name: str
    summary: str
    source: str
    increments: tuple[int, ...]
    """Classes that each increment adds."""
    exemplars_total: int
    baseline: str
    """The method that the printed bytes are counted from."""
    combinations: tuple[str, ...]
    """Methods with plug-ins, ``host+plug-in``, that take part where they are installed."""
    datasets: tuple[Dataset, ...]


def protocols() -> tuple[str, ...]:
    """Return the names of all memory protocols."""
    folder = resources.files("edgecil.reporting") / "protocols"
    files = (p.name for p in folder.iterdir() if p.name.endswith(SUFFIX))
    return tuple(sorted(name.removesuffix(SUFFIX) for name in files))


def protocol(name: str) -> MemoryProtocol:
    """Return the memory protocol of a name.

    Raises:
        UsageError: there is none; the nearest names are offered.
    """
    if name not in protocols():
        raise UsageError(f"unknown memory protocol {name!r}", hint=nearest(name, list(protocols())))
    file = resources.files("edgecil.reporting") / "protocols" / f"{name}{SUFFIX}"
    values = tomllib.loads(file.read_text(encoding="utf-8"))
    datasets = []
    for data in values.pop("datasets"):
        published = {m: round(mb * 10**6) for m, mb in data.pop("published_mb").items()}
        datasets.append(Dataset(**data | {"codecs": tuple(data["codecs"])}, published=published))
    values |= {key: tuple(values[key]) for key in ("increments", "combinations")}
    return MemoryProtocol(name=name, datasets=tuple(datasets), **values)
