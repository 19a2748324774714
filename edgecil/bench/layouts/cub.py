"""CUB-200-2011: 200 species of birds."""

from __future__ import annotations

from pathlib import Path

from edgecil.bench.layouts.listing import (
    Listing,
    columns,
    grouped,
    holds,
    locate,
    require_files,
)
from edgecil.errors import DataError

LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


def cub200(root: Path) -> Listing:
    """Return the listing of ``CUB_200_2011`` with its own split, classes in their own order.

    Raises:
        DataError: a part is missing, or the lists do not fit together.
    """
    home = locate(root, f"{', '.join(LISTS)} and images/", holds(*LISTS, "images"))
    files, labels, training, classes = (dict(columns(home / name, 2)) for name in LISTS)
    for name, column in zip(LISTS[1:3], (labels, training), strict=True):
        if column.keys() != files.keys():
            raise DataError(
                f"{home / name}: expected the {len(files):,} images of {LISTS[0]}, got "
                f"{len(column):,} rows or other numbers"
            )
    strangers = set(labels.values()) - classes.keys()
    if strangers:
        raise DataError(f"{home / LISTS[1]}: class {min(strangers)} is not in {LISTS[3]}")
    paths = {number: home / "images" / file for number, file in files.items()}
    require_files(list(paths.values()), home / LISTS[0])
    parts = {
        flag: grouped((classes[labels[n]], p) for n, p in paths.items() if training[n] == flag)
        for flag in "10"
    }
    return Listing(tuple(classes.values()), parts["1"], parts["0"])
