"""Data sets as they lie on disk: which images belong to which class, for training and testing."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import chain, count
from pathlib import Path

from edgecil.bench.layouts.caltech import caltech101
from edgecil.bench.layouts.cifar import cifar100
from edgecil.bench.layouts.cub import cub200
from edgecil.bench.layouts.folders import class_folders
from edgecil.bench.layouts.imagenet import imagenet, imagenet_devkit
from edgecil.bench.layouts.listing import Listing
from edgecil.bench.layouts.resplit import resplit
from edgecil.bench.layouts.tiny_imagenet import tiny_imagenet
from edgecil.errors import DataError, UsageError
from edgecil.spelling import nearest

__all__ = ["LAYOUTS", "Listing", "link", "read"]

LAYOUTS: Mapping[str, Callable[[Path], Listing]] = {
    "folders": class_folders,
    "cifar100": cifar100,
    "tiny-imagenet": tiny_imagenet,
    "cub200": cub200,
    "cub200-80-20": lambda root: resplit(cub200(root), 0.2),
    "caltech101": caltech101,
    "imagenet": imagenet,
    "imagenet-devkit": imagenet_devkit,
}
"""The reader of every layout by name."""


def read(layout: str, root: Path) -> Listing:
    """Return the listing of the data set in ``root``.

    Raises:
        UsageError: an unknown layout.
        DataError: the folder does not look like that.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"unknown layout {layout!r}", hint=nearest(layout, list(LAYOUTS)))
    if not root.is_dir():
        raise DataError(f"{root}: no such folder", hint="give the data set's folder with --data")
    return LAYOUTS[layout](root)


def link(images: Mapping[str, Sequence[Path]], classes: Sequence[str], target: Path) -> Path:
    """Return ``target``, filled with a folder of links to the images of every class.

    Links have the names of the images; where several of a class have one name, numbers follow.

    Raises:
        DataError: a link that is there leads elsewhere.
    """
    for name in classes:
        folder, taken = target / name, set[str]()
        folder.mkdir(parents=True, exist_ok=True)
        for path in images[name]:
            place = folder / _free(path, taken)
            taken.add(place.name)
            if not place.is_symlink():
                place.symlink_to(path.absolute())
            elif not (place.exists() and place.samefile(path)):
                raise DataError(
                    f"{place} leads to {os.readlink(place)}, expected {path}: the data set is not "
                    "that of before",
                    hint="give the --data of before, or another --out",
                )
    return target


def _free(path: Path, taken: Container[str]) -> str:
    """Return the name of a file, or the first with a number that is not taken."""
    numbered = (f"{path.stem}-{n}{path.suffix}" for n in count(2))
    return next(name for name in chain([path.name], numbered) if name not in taken)
