"""Images beside the new ones: folders that a method asks for and that show none of the classes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from edgecil.data.images import ImageSet
from edgecil.data.resident import place
from edgecil.data.source import ImageFolder, fingerprint, folded, scan_all
from edgecil.errors import DataError, UsageError
from edgecil.learning.intake import load_images
from edgecil.learning.request import LearnRequest
from edgecil.method import Recipe, Source
from edgecil.settings import Preprocess

Folders = Mapping[str, ImageFolder]
"""The images of every source, by its name."""


def scan_sources(
    recipe: Recipe, new: Sequence[Path], names: Sequence[str]
) -> dict[str, ImageFolder]:
    """Return the images of a method's sources; nothing is decoded.

    ``new`` are the files of the new images, ``names`` all classes after this increment.

    Raises:
        UsageError: no folder was given.
        DataError: there is no image in it, or it has images of the classes.
    """
    found = {source.name: _scan(recipe.name, source) for source in recipe.sources}
    for source in recipe.sources:
        _refuse_classes(found[source.name], names)
        _refuse_copies(found[source.name], new)
    return found


def _scan(method: str, source: Source) -> ImageFolder:
    if not source.folder:
        raise UsageError(
            f"{method} needs a folder of images that show none of the classes",
            hint=f"--set {source.option}=DIR",
        )
    return scan_all(source.folder)


def _refuse_classes(folder: ImageFolder, names: Sequence[str]) -> None:
    """Refuse images in a folder that is called like a class: the one given, or one inside it."""
    known = {folded(name) for name in names}
    given = os.path.basename(os.path.abspath(folder.root))
    for path in folder.paths:
        for part in (given, *path.relative_to(folder.root).parts[:-1]):
            if folded(part) in known:
                raise DataError(
                    f"{folder.root}: {part}/ is one of the classes, and these images must show "
                    "none of them",
                    hint="take the folders of the classes out",
                )


def _refuse_copies(folder: ImageFolder, new: Iterable[Path]) -> None:
    """Refuse files that are new images under another name."""
    sizes: dict[int, list[Path]] = {}
    for path in folder.paths:
        sizes.setdefault(path.stat().st_size, []).append(path)
    digests: dict[bytes, Path] = {}
    hashed: set[int] = set()
    for path in new:
        size = path.stat().st_size
        if size not in sizes:
            continue
        if size not in hashed:
            hashed.add(size)
            digests |= {_digest(other): other for other in sizes[size]}
        twin = digests.get(_digest(path))
        if twin is not None:
            raise DataError(
                f"{twin} is the same file as the new image {path}, and must show none of the "
                "classes",
                hint=f"give another folder than {folder.root}",
            )


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def load_sources(
    folders: Folders,
    request: LearnRequest,
    preprocess: Preprocess,
    device: torch.device,
    disk: Path,
    say: Callable[[str], None],
) -> dict[str, ImageSet]:
    """Return the decoded images of the sources: centre of the network's input, all labels 0.

    Raises:
        DataError: an image is damaged, or neither memory nor disk has room.
    """
    sets = {}
    for name, folder in folders.items():
        loaded = load_images(
            folder, preprocess, disk, stream=request.stream, skip_bad=request.skip_bad, say=say
        )
        for skipped in loaded.skipped:
            say(f"skipped: {skipped.reason}")
        sets[name] = place(loaded.images, device)
    return sets


def fingerprints(folders: Folders) -> dict[str, str]:
    """Return a SHA-256 of every source, as :func:`edgecil.data.source.fingerprint` makes it."""
    return {name: fingerprint(folder) for name, folder in folders.items()}
