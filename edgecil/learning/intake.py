"""From folders of images to decoded sets with the labels of the workspace."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edgecil.data.decode import Loaded, Progress, load, split_validation
from edgecil.data.images import ImageSet, concat
from edgecil.data.resident import free_host_bytes, pixel_bytes, place, streams
from edgecil.data.source import (
    ImageFolder,
    align,
    check_new,
    fingerprint,
    folded,
    left_out,
    of_labels,
    scan,
    unknown_classes,
)
from edgecil.data.streams import stream
from edgecil.engine.events import Listener, Stage
from edgecil.errors import DataError, UsageError
from edgecil.learning.request import LearnRequest
from edgecil.nets.build import auto_arch
from edgecil.settings import CIFAR, IMAGENET, Preprocess, Stream
from edgecil.units import count, format_bytes
from edgecil.workspace import VersionManifest

Say = Callable[[str], None]
PROBE = 64
"""Images whose size is looked at to choose a network."""


@dataclass(frozen=True)
class Images:
    """The images of an increment, decoded."""

    folder: ImageFolder
    """Where they come from, labelled by head row: known classes, then the new ones."""
    old: int
    """Number of classes that are known already."""
    new: ImageSet
    held_out: ImageSet | None
    """New images set aside by ``--val-fraction``."""
    paths: Sequence[Path]
    """Files of ``new``, in order."""
    fingerprint: str

    @property
    def names(self) -> tuple[str, ...]:
        """New classes, in order of introduction."""
        return self.folder.classes[self.old :]

    @property
    def file_bytes(self) -> int:
        """Bytes of the files of ``new``."""
        return sum(path.stat().st_size for path in self.paths)

    def sample(self, count: int) -> NDArray[np.uint8]:
        """Return up to ``count`` stored images ``(n, R, R, 3)``, evenly spread over the set."""
        last = len(self.new) - 1
        rows = np.unique(np.linspace(0, last, min(count, last + 1)).astype(np.int64))
        chosen = torch.from_numpy(rows).to(self.new.pixels.device)
        pixels: NDArray[np.uint8] = self.new.pixels.index_select(0, chosen).cpu().numpy()
        return pixels


def scan_new(request: LearnRequest, parent: VersionManifest | None, say: Say) -> ImageFolder:
    """Return the folder of new images, labelled by head row: known classes, then the new ones.

    Raises:
        DataError: there is nothing to learn in it, or a class is known already and
            ``update_known`` was not asked for.
        UsageError: ``class_order`` does not name exactly the new classes of the folder.
    """
    folder = scan(request.new_data)
    for note in folder.notes:
        say(note)
    known = parent.names if parent else []
    if not request.update_known:
        check_new(folder.classes, known)
    taken = {folded(name) for name in known}
    fresh = [name for name in folder.classes if folded(name) not in taken]
    order = fresh if request.class_order is None else list(request.class_order)
    if sorted(order) != sorted(fresh):
        raise UsageError("class_order must name exactly the new classes of the folder, each once")
    return dataclasses.replace(align(folder, (*known, *order)), test=folder.test)


def updated_rows(folder: ImageFolder, old: int) -> tuple[int, ...]:
    """Return the head rows of the ``old`` known classes that have images in a scanned folder."""
    return tuple(sorted(row for row in set(folder.labels) if row < old))


def choose_input(
    request: LearnRequest, folder: ImageFolder, preset_arch: str | None, say: Say
) -> tuple[Preprocess, str]:
    """Return how images enter a new network, and its architecture."""
    given = request.preprocess
    size = given.size if given else request.image_size or _input_size(folder)
    arch = request.arch
    if arch == "auto" and preset_arch is not None:
        arch = preset_arch
    elif arch == "auto":
        arch, why = auto_arch(size)
        say(why)
    if given is not None:
        return given, arch
    like = IMAGENET if size >= 96 else CIFAR
    resize = round(size * like.resize / like.size)
    return Preprocess(size, resize, like.mean, like.std), arch


def _input_size(folder: ImageFolder) -> int:
    """Return 32, 64 or 224: the usual network input nearest to the images of the folder."""
    sides = []
    for path in folder.paths[:: max(1, len(folder) // PROBE)]:
        # A damaged file is named when it is decoded.
        with contextlib.suppress(Exception), Image.open(path) as image:
            sides.append(min(image.size))
    shorter = statistics.median(sides) if sides else 0
    return 32 if shorter <= 48 else 64 if shorter < 96 else 224


def load_images(
    folder: ImageFolder,
    preprocess: Preprocess,
    disk: Path,
    *,
    stream: Stream = "auto",
    skip_bad: bool = False,
    say: Say = lambda text: None,
    on_progress: Progress | None = None,
) -> Loaded:
    """Return the decoded images of a folder: in memory, or on the disk of the folder ``disk``.

    Raises:
        DataError: an image is damaged, or neither memory nor disk has room for all.
    """
    needed = pixel_bytes(len(folder), preprocess.resize)
    streamed = streams(needed, stream)
    if streamed:
        say(
            f"{len(folder):,} images are streamed from a temporary file of {format_bytes(needed)} "
            f"on the disk of {disk}; {format_bytes(free_host_bytes())} of memory are free"
        )
    at = disk if streamed else None
    return load(folder, preprocess, skip_bad=skip_bad, on_progress=on_progress, disk=at)


def decode_new(
    request: LearnRequest,
    folder: ImageFolder,
    old: int,
    preprocess: Preprocess,
    device: torch.device,
    disk: Path,
    say: Say,
    listener: Listener,
) -> Images:
    """Return the decoded new images of a scanned folder, beside ``old`` known classes.

    Those that are streamed lie on the disk of the folder ``disk``.

    Raises:
        DataError: an image is damaged or changed meanwhile, a class lost all its images to
            ``--skip-bad``, or the disk is full.
    """

    def progress(done: int, total: int) -> None:
        listener(Stage("decoding images", done, total))

    before = fingerprint(folder)
    loaded = load_images(
        folder, preprocess, disk, stream=request.stream, skip_bad=request.skip_bad, say=say,
        on_progress=progress,
    )  # fmt: skip
    if fingerprint(folder) != before:
        raise DataError(
            f"images in {folder.root} changed while they were decoded",
            hint="try again when nothing writes to that folder",
        )
    for skipped in loaded.skipped:
        say(f"skipped: {skipped.reason}")
    every, paths, held = loaded.images, loaded.paths, None
    if request.val_fraction:
        generator = stream(request.seed, "validation", old)
        rows, held_rows = split_validation(every.labels, request.val_fraction, generator)
        held = every.subset(held_rows)
        every, paths = every.subset(rows), tuple(paths[i] for i in rows.tolist())
    return Images(folder, old, place(every, device), held, paths, before)


def scan_tests(path: str | os.PathLike[str]) -> ImageFolder:
    """Return the images to test on in a folder: of ``train/`` and ``val/`` the latter.

    Raises:
        DataError: there is nothing in it.
    """
    folder = scan(path)
    return folder.test or folder


def load_tests(
    folders: Sequence[Path],
    names: Sequence[str],
    preprocess: Preprocess,
    disk: Path,
    say: Say,
    *,
    stream: Stream = "auto",
    skip_bad: bool = False,
) -> list[ImageSet]:
    """Return the test images of the classes ``names`` in folders; of others they are left out.

    A class that several folders show is tested on the last of them alone: one that shows all
    classes so far has the images of earlier ones again. Images that are streamed lie on the disk
    of the folder ``disk``.

    Raises:
        DataError: a folder has none, or an image is damaged.
    """
    sets: list[ImageSet] = []
    shown: set[int] = set()
    for path in reversed(folders):
        found = scan_tests(path)
        if unknown := unknown_classes(found, names):  # of classes yet to come, or misspelt
            say(left_out(found, unknown))
        known = align(found, names)
        here = set(known.labels)
        if twice := here & shown:
            say(f"{path}: not tested on its {count(len(twice), 'class')} that a later folder shows")
        if fresh := here - shown:
            only = of_labels(known, fresh)
            sets.append(
                load_images(
                    only, preprocess, disk, stream=stream, skip_bad=skip_bad, say=say
                ).images
            )
        shown |= here
    return sets[::-1]


def test_folders(
    request: LearnRequest, images: Images, parent: VersionManifest | None
) -> list[Path]:
    """Return the folders of test images that exist: earlier increments' first, then the new."""
    recorded = (parent.test or {}).get("folders", []) if parent else []
    beside = [images.folder.test.root] if images.folder.test else []
    given = [Path(request.test_data)] if request.test_data else []
    every = dict.fromkeys(Path(f).absolute() for f in [*recorded, *beside, *given])
    return [path for path in every if path.is_dir()]


def decode_tests(
    request: LearnRequest,
    images: Images,
    parent: VersionManifest | None,
    names: Sequence[str],
    preprocess: Preprocess,
    disk: Path,
    say: Say,
) -> ImageSet | None:
    """Return all test images of the classes ``names``, or None when there are none.

    Those that are streamed lie on the disk of the folder ``disk``.

    Raises:
        DataError: the folder given as ``--test-data`` is not there, or an image is damaged.
    """
    if request.test_data is not None and not Path(request.test_data).is_dir():
        raise DataError(f"no folder of test images at {request.test_data}")
    sets = [] if images.held_out is None else [images.held_out]
    sets += load_tests(
        test_folders(request, images, parent), names, preprocess, disk, say,
        stream=request.stream, skip_bad=request.skip_bad,
    )  # fmt: skip
    return concat(sets) if sets else None
