"""Caltech-101: 101 categories of objects, no split of its own."""

from __future__ import annotations

from pathlib import Path

from edgecil.bench.layouts.listing import Listing, holds, images_in, locate, visible
from edgecil.bench.layouts.resplit import split
from edgecil.errors import DataError

FOLDER = "101_ObjectCategories"
CLUTTER = "BACKGROUND_Google"  # pictures of anything, not a category


def caltech101(root: Path, test: float = 0.2) -> Listing:
    """Return the listing of ``101_ObjectCategories``, the share ``test`` of each class for testing.

    Raises:
        DataError: the folder is not there.
    """
    if root.name == FOLDER:
        home = root
    else:
        home = locate(root, f"{FOLDER}/", holds(FOLDER)) / FOLDER
    folders = [p for p in visible(home) if p.is_dir() and p.name != CLUTTER]
    images = {folder.name: images_in(folder) for folder in folders}
    small = next((name for name, paths in images.items() if len(paths) < 2), None)
    if small is not None:
        raise DataError(
            f"{home / small}: expected images to train and to test on, got fewer than 2"
        )
    return split(images, test)
