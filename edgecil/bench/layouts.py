"""Data sets as they lie on disk: which images belong to which class, for training and testing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecil.data.source import ImageFolder, scan
from edgecil.errors import DataError, UsageError
from edgecil.options import nearest


@dataclass(frozen=True)
class Listing:
    """The images of a data set by class; ``classes`` is the data set's own order."""

    classes: tuple[str, ...]
    train: Mapping[str, Sequence[Path]]
    test: Mapping[str, Sequence[Path]]


def class_folders(root: Path) -> Listing:
    """Return a listing of ``train/<class>/`` beside ``test/`` or ``val/``, in order of name.

    Raises:
        DataError: no such folders.
    """
    train = scan(root)
    if train.test is None:
        raise DataError(f"{root}: expected train/ and test/ (or val/), each with class folders")
    return Listing(train.classes, _by_class(train), _by_class(train.test))


def _by_class(folder: ImageFolder) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {name: [] for name in folder.classes}
    for path, label in zip(folder.paths, folder.labels, strict=True):
        found[folder.classes[label]].append(path)
    return found


LAYOUTS: Mapping[str, Callable[[Path], Listing]] = {
    "folders": class_folders,
    "cifar100": class_folders,
}


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
    """Return ``target``, filled with a folder of links to the images of every class."""
    for name in classes:
        (target / name).mkdir(parents=True, exist_ok=True)
        for path in images[name]:
            place = target / name / path.name
            if not place.is_symlink():
                place.symlink_to(path.absolute())
    return target
