"""Images that come packed in one file become files, once, class by class."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgecil.bench.layouts.listing import Listing, images_in
from edgecil.errors import DataError


class Packed(NamedTuple):
    """Images ``(N, H, W, 3)`` uint8 and labels ``(N,)`` int64: places in the names."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


def unpack(parts: Mapping[str, Packed], names: Sequence[str], cache: Path) -> Listing:
    """Return the listing of ``<cache>/<part>/<class>/<record>.png`` after writing what is missing.

    A class is written beside its place and renamed, so that what is there is whole: a stopped
    call continues where it was, and several at once do not harm each other.

    Raises:
        DataError: the cache cannot be written, or holds other images than these.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    for part, packed in parts.items():
        found[part] = {}
        for label, name in enumerate(names):
            rows = np.flatnonzero(packed.labels == label).tolist()
            folder = cache / part / name
            if not folder.is_dir():
                _write(packed.pixels, rows, folder)
            images = images_in(folder)
            if [p.name for p in images] != [_file(row) for row in rows]:
                raise DataError(
                    f"{folder}: expected {len(rows)} images of this data set, got {len(images)}",
                    hint=f"remove the folder {cache}: it is made again",
                )
            found[part][name] = images
    return Listing(tuple(names), found["train"], found["test"])


def _file(row: int) -> str:
    return f"{row:05d}.png"


def _write(pixels: NDArray[np.uint8], rows: Sequence[int], folder: Path) -> None:
    """Write the images ``rows`` into a folder that appears when it is complete."""
    partial = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for row in rows:
            Image.fromarray(np.ascontiguousarray(pixels[row])).save(partial / _file(row))
        os.rename(partial, folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        # Another process was faster: its images are the same.
        if not folder.is_dir():
            raise DataError(
                f"{folder}: cannot write the images: {error.strerror}",
                hint="copy the data set to a folder with room that can be written to",
            ) from None
