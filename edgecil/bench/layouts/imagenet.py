"""ImageNet (ILSVRC 2012): class folders named by WordNet id, and the order of its devkit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgecil.bench.layouts.listing import (
    Listing,
    grouped,
    holds,
    images_in,
    lines,
    locate,
    visible,
)
from edgecil.errors import DataError, DependencyMissing

DEVKIT = "ILSVRC2012_devkit_t12"
META = Path("data", "meta.mat")
TRUTH = Path("data", "ILSVRC2012_validation_ground_truth.txt")


def imagenet(root: Path) -> Listing:
    """Return the listing of ``train/<wnid>/`` and ``val/``, classes in order of WordNet id.

    ``val/`` has class folders, or all images in one folder: then the devkit beside it says
    their classes.

    Raises:
        DataError: a part is missing, or the number of validation images is not the devkit's.
    """
    home = locate(root, "train/ and val/ with ImageNet's images", holds("train", "val"))
    train = {p.name: images_in(p) for p in visible(home / "train") if p.is_dir()}
    flat = images_in(home / "val")
    test = _labelled(flat, home) if flat else {}
    test = test or {p.name: images_in(p) for p in visible(home / "val") if p.is_dir()}
    return Listing(tuple(sorted(train)), train, test)


def imagenet_devkit(root: Path) -> Listing:
    """Return the same listing, its classes in the order of the devkit's ILSVRC2012 ids.

    Raises:
        DataError: as :func:`imagenet`; or the devkit is missing.
        DependencyMissing: scipy is, which reads the devkit's MATLAB file.
    """
    listing = imagenet(root)
    home = locate(root, "train/ and val/ with ImageNet's images", holds("train", "val"))
    numbered = devkit_classes(_devkit(home))
    names = tuple(n for _, n in sorted(numbered.items()) if n in listing.train)
    unknown = [n for n in listing.classes if n not in names]
    if unknown:
        raise DataError(f"{home / 'train' / unknown[0]}: no class of ILSVRC 2012")
    return replace(listing, classes=names)


def _devkit(home: Path) -> Path:
    for place in (home / DEVKIT, home, home.absolute().parent / DEVKIT):
        if (place / META).exists():
            return place
    raise DataError(
        f"{home}: the devkit is missing, which numbers the classes",
        hint=f"unpack {DEVKIT}.tar.gz of image-net.org beside train/ and val/",
    )


def devkit_classes(devkit: Path) -> dict[int, str]:
    """Return the WordNet id of every class by its ILSVRC2012 id, from 1.

    Raises:
        DataError: the devkit's file is damaged.
        DependencyMissing: scipy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DependencyMissing(
            "the devkit's meta.mat is a MATLAB file: reading it needs scipy",
            hint="pip install scipy",
        ) from None
    try:
        synsets: Any = loadmat(devkit / META, squeeze_me=True)["synsets"]
        rows = [(int(s["ILSVRC2012_ID"]), str(s["WNID"]), int(s["num_children"])) for s in synsets]
    except Exception as error:
        raise DataError(f"{devkit / META} is damaged: {error}") from None
    # Synsets with children are groups of classes.
    return {number: wnid for number, wnid, children in rows if children == 0}


def _labelled(images: list[Path], home: Path) -> dict[str, list[Path]]:
    """Return flat validation images by class, as the devkit labels them."""
    devkit = _devkit(home)
    names, labels = devkit_classes(devkit), [int(line) for line in lines(devkit / TRUTH)]
    if len(labels) != len(images):
        raise DataError(
            f"{home / 'val'}: expected {len(labels):,} images, one for each line of {TRUTH.name}, "
            f"got {len(images):,}",
            hint="unpack ILSVRC2012_img_val.tar again",
        )
    numbers = [int(re.sub(r"\D", "", p.stem)[-8:] or 0) for p in images]
    if numbers != list(range(1, len(images) + 1)):
        raise DataError(f"{home / 'val'}: expected images numbered from 1 without gaps")
    return grouped((names[label], path) for label, path in zip(labels, images, strict=True))
