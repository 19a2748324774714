"""Image files to one array of pixels, in memory or on disk, decoded once by several threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgecil.data.disk import DiskPixels, PixelFile
from edgecil.data.images import ImageSet, Pixels
from edgecil.data.resident import pixel_bytes, require_host
from edgecil.data.source import ImageFolder
from edgecil.errors import DataError, DependencyMissing, UsageError
from edgecil.settings import Preprocess
from edgecil_runtime.errors import ImageError, RuntimeMissing
from edgecil_runtime.images import MAX_PIXELS, fit_square, read_image

Progress = Callable[[int, int], None]
_CHUNK = 64


class Skipped(NamedTuple):
    """An image that was left out, and why."""

    path: Path
    reason: str


class Decoded(NamedTuple):
    """Pixels uint8 ``(N, R, R, 3)`` of the images at ``kept`` of the given paths."""

    pixels: Pixels
    kept: list[int]
    skipped: list[Skipped]


class Loaded(NamedTuple):
    """The images of a folder, the file of each, and what was left out."""

    images: ImageSet
    paths: tuple[Path, ...]
    skipped: list[Skipped]


def decode(
    paths: Sequence[Path],
    resize: int,
    workers: int | None = None,
    skip_bad: bool = False,
    on_progress: Progress | None = None,
    max_pixels: int = MAX_PIXELS,
    disk: Path | None = None,
) -> Decoded:
    """Return the images at ``paths``, the shorter side resized to ``resize``, centre cropped.

    Memory is taken once, before the first image is read, or room on the disk of the folder
    ``disk``: then no more than an image per worker is in memory. ``workers`` threads (default:
    one per usable core) decode; ``on_progress(done, total)`` runs in the calling thread. With
    ``skip_bad`` images that cannot be read are left out and listed.

    Raises:
        DataError: the pixels do not fit into memory or on the disk; or an image cannot be read,
            is truncated or has more than ``max_pixels`` pixels (the first in order is named).
        DependencyMissing: Pillow is not installed.
    """
    total = len(paths)
    pixels = _room(total, resize, disk)

    def work(start: int) -> list[tuple[int, str]]:
        bad = []
        for index in range(start, min(total, start + _CHUNK)):
            try:
                pixels[index] = fit_square(read_image(paths[index], max_pixels), resize)
            except ImageError as error:
                bad.append((index, error.message))
                if not skip_bad:
                    break
        return bad

    bad: dict[int, str] = {}
    pool = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)), "decode")
    try:
        # Results come in order of the files, so that the first bad one is the one named.
        for number, found in enumerate(pool.map(work, range(0, total, _CHUNK))):
            bad.update(found)
            if bad and not skip_bad:
                raise DataError(next(iter(bad.values())), hint="leave such images out: --skip-bad")
            if on_progress:
                on_progress(min(total, (number + 1) * _CHUNK), total)
    except RuntimeMissing as error:
        raise DependencyMissing(error.message, hint=error.hint) from None
    finally:
        pool.shutdown(cancel_futures=True)
    kept = [index for index in range(total) if index not in bad]
    skipped = [Skipped(paths[index], reason) for index, reason in bad.items()]
    if isinstance(pixels, PixelFile):
        return Decoded(DiskPixels([pixels], np.array(kept, np.int64)), kept, skipped)
    return Decoded(torch.from_numpy(_compacted(pixels, kept)), kept, skipped)


def _room(count: int, resize: int, disk: Path | None) -> NDArray[np.uint8] | PixelFile:
    """Return an array, or a file on the disk of a folder, to write the images into."""
    if disk is not None:
        return PixelFile(disk, count, resize)
    require_host(pixel_bytes(count, resize), f"{count:,} images of {resize} x {resize}")
    return np.empty((count, resize, resize, 3), np.uint8)


def _compacted(pixels: NDArray[np.uint8], kept: list[int]) -> NDArray[np.uint8]:
    """Return the rows ``kept`` moved to the front of ``pixels``, without a second array."""
    for target, index in enumerate(kept):
        if target != index:
            pixels[target] = pixels[index]
    return pixels[: len(kept)]


def load(
    folder: ImageFolder,
    preprocess: Preprocess,
    workers: int | None = None,
    skip_bad: bool = False,
    on_progress: Progress | None = None,
    disk: Path | None = None,
) -> Loaded:
    """Return the images of ``folder``, labelled as the folder labels them.

    They are in host memory, or on the disk of the folder ``disk``.

    Raises:
        DataError: as :func:`decode`; or a class has lost all its images by skipping.
    """
    decoded = decode(folder.paths, preprocess.resize, workers, skip_bad, on_progress, disk=disk)
    labels = torch.tensor([folder.labels[index] for index in decoded.kept], dtype=torch.int64)
    lost = set(folder.labels).difference(labels.tolist())
    if lost:
        names = ", ".join(folder.classes[label] for label in sorted(lost))
        first = decoded.skipped[0]
        raise DataError(
            f"{folder.root}: no image is left of {names}: all of them are bad, the first: "
            f"{first.reason}",
            hint="add readable images or remove the folder",
        )
    images = ImageSet(decoded.pixels, labels)
    return Loaded(images, tuple(folder.paths[index] for index in decoded.kept), decoded.skipped)


def split_validation(
    labels: Tensor, fraction: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return int64 indices to train on and to hold out, both ascending.

    Of each class with n images round(fraction * n) are held out, chosen by ``generator``, but
    never its last one: a small class may have none held out.

    Raises:
        UsageError: ``fraction`` is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise UsageError(f"the fraction to hold out must be in [0, 1), got {fraction}")
    labels = labels.cpu()
    shuffled = torch.randperm(len(labels), generator=generator)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = shuffled[labels[shuffled] == label]
        count = min(len(members) - 1, int(fraction * len(members) + 0.5))
        held[members[:count]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()
