"""CIFAR-100: the binary version, or class folders of its images in any format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecil.bench.layouts.folders import class_folders
from edgecil.bench.layouts.listing import Listing, find, holds, lines
from edgecil.bench.layouts.packed import Packed, unpack
from edgecil.errors import DataError

SIDE = 32
LABELS = 2  # the coarse and the fine one, one byte each
RECORD = LABELS + 3 * SIDE * SIDE
NAMES = "fine_label_names.txt"
_BINARY = holds("train.bin", "test.bin", NAMES)
DOWNLOAD = "take the binary version: https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"


def _python_version(folder: Path) -> bool:
    return (folder / "meta").is_file() and (folder / "train").is_file()


def cifar100(root: Path) -> Listing:
    """Return the listing of CIFAR-100, its classes in order of their fine label.

    ``cifar-100-binary`` becomes PNG files once, in ``images/`` beside the packed files; class
    folders are taken as they are.

    Raises:
        DataError: neither is there, a file is truncated, or it is the Python version, a pickle,
            which is not opened because it may run any code.
    """
    home = find(root, _BINARY)
    if home is None:
        pickled = find(root, _python_version)
        if pickled is not None:
            raise DataError(f"{pickled}: the Python version is a pickle, which is not read",
                            hint=DOWNLOAD)  # fmt: skip
        return class_folders(root)
    names = lines(home / NAMES)
    parts = {part: _read(home / f"{part}.bin", names) for part in ("train", "test")}
    return unpack(parts, names, home / "images")


def _read(path: Path, names: list[str]) -> Packed:
    """Return the images of a file of records: coarse label, fine label, then red, green, blue."""
    size = path.stat().st_size
    if size == 0 or size % RECORD:
        raise DataError(
            f"{path}: expected records of {RECORD} bytes, got {size:,} bytes: it is truncated",
            hint=DOWNLOAD,
        )
    records: NDArray[np.uint8] = np.memmap(path, np.uint8, "r").reshape(-1, RECORD)
    labels = np.asarray(records[:, 1], dtype=np.int64)
    if labels.max() >= len(names):
        raise DataError(
            f"{path}: it has label {labels.max()}, {NAMES} has {len(names)} names", hint=DOWNLOAD
        )
    counts = np.bincount(labels, minlength=len(names))
    if counts.min() != counts.max():
        few = names[int(counts.argmin())]
        raise DataError(
            f"{path}: expected as many images of every class, got {counts.min()} of {few} and up "
            f"to {counts.max()} of others: it is incomplete",
            hint=DOWNLOAD,
        )
    planes = records[:, LABELS:].reshape(-1, 3, SIDE, SIDE)
    return Packed(planes.transpose(0, 2, 3, 1), labels)
