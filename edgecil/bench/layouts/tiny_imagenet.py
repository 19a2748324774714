"""Tiny-ImageNet: 200 classes of 64 x 64 images."""

from __future__ import annotations

from pathlib import Path

from edgecil.bench.layouts.listing import (
    Listing,
    columns,
    grouped,
    holds,
    images_in,
    lines,
    locate,
    require_files,
)
from edgecil.errors import DataError

ANNOTATIONS = Path("val", "val_annotations.txt")


def tiny_imagenet(root: Path) -> Listing:
    """Return the listing of ``tiny-imagenet-200``, its classes in the order of wnids.txt.

    Tested on the validation images: labels of the test images were not published.

    Raises:
        DataError: a part is missing, or the lists do not fit together.
    """
    home = locate(root, "wnids.txt, train/ and val/", holds("wnids.txt", "train", "val"))
    names = tuple(lines(home / "wnids.txt"))
    train = {name: images_in(home / "train" / name / "images") for name in names}
    rows = [(name, file) for file, name in columns(home / ANNOTATIONS, 2, "\t")]
    stranger = next((name for name, _ in rows if name not in train), None)
    if stranger is not None:
        raise DataError(f"{home / ANNOTATIONS}: class {stranger} is not in wnids.txt")
    test = grouped((name, home / "val" / "images" / file) for name, file in rows)
    require_files([p for paths in test.values() for p in paths], home / ANNOTATIONS)
    return Listing(names, train, test)
