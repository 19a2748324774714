"""Class folders: ``train/<class>/`` beside ``test/`` or ``val/``."""

from __future__ import annotations

from pathlib import Path

from edgecil.bench.layouts.listing import Listing, grouped, locate
from edgecil.data.source import ImageFolder, scan
from edgecil.errors import DataError


def class_folders(root: Path) -> Listing:
    """Return a listing of ``train/<class>/`` beside ``test/`` or ``val/``, in order of name.

    Raises:
        DataError: no such folders.
    """
    wanted = "train/ and test/ (or val/), each with class folders"
    home = locate(root, wanted, _is_split)
    train = scan(home)
    if train.test is None:
        raise DataError(f"{home}: expected {wanted}; train/ has none")
    return Listing(train.classes, _by_class(train), _by_class(train.test))


def _is_split(folder: Path) -> bool:
    beside = (folder / "test").is_dir() or (folder / "val").is_dir()
    return (folder / "train").is_dir() and beside


def _by_class(folder: ImageFolder) -> dict[str, list[Path]]:
    labelled = zip(folder.labels, folder.paths, strict=True)
    return grouped((folder.classes[label], path) for label, path in labelled)
