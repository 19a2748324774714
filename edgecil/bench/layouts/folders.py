"""Class folders: ``train/<class>/`` beside ``test/`` or ``val/``."""

from __future__ import annotations

from pathlib import Path

from edgecil.bench.layouts.listing import Listing, grouped, locate, visible
from edgecil.data.source import ImageFolder, scan


def class_folders(root: Path) -> Listing:
    """Return a listing of ``train/<class>/`` beside ``test/`` or ``val/``, in order of name.

    Raises:
        DataError: no such folders.
    """
    wanted = "train/ and test/ (or val/), each with class folders"
    train = scan(locate(root, wanted, _is_split))
    assert train.test is not None  # train/ has folders, and test/ or val/ is beside it
    return Listing(train.classes, _by_class(train), _by_class(train.test))


def _is_split(folder: Path) -> bool:
    beside = (folder / "test").is_dir() or (folder / "val").is_dir()
    train = folder / "train"
    return beside and train.is_dir() and any(p.is_dir() for p in visible(train))


def _by_class(folder: ImageFolder) -> dict[str, list[Path]]:
    labelled = zip(folder.labels, folder.paths, strict=True)
    return grouped((folder.classes[label], path) for label, path in labelled)
