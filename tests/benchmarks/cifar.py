"""Images of CIFAR-100 from the archives that the benchmarks read."""

from __future__ import annotations

import zipfile
from pathlib import Path

from edgecil.data.orders import numpy_order

CLASSES = 25


def unpack(archives: Path, target: Path, classes: list[str]) -> None:
    """Unpack the images of ``classes`` into ``target/train`` and ``target/test``."""
    wanted = {f"{split}/{name}" for split in ("train", "test") for name in classes}
    for name in ("train-a", "train-b", "test"):
        with zipfile.ZipFile(archives / f"cifar100-{name}.zip") as archive:
            members = [m for m in archive.namelist() if m.rpartition("/")[0] in wanted]
            archive.extractall(target, members)


def all_classes(archives: Path) -> list[str]:
    """Return the names of the hundred classes, sorted."""
    with zipfile.ZipFile(archives / "cifar100-test.zip") as archive:
        return sorted({m.split("/")[1] for m in archive.namelist() if m.count("/") == 2})


def class_order(archives: Path) -> list[str]:
    """Return the first 25 classes in the order of numpy's seed 1993."""
    names = all_classes(archives)
    return [names[i] for i in numpy_order(100)[:CLASSES]]
