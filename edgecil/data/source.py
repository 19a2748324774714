"""Folders of images: what is in them, and whether they can be learned from.

A class is a folder; its images lie at any depth below it. ``train/`` beside ``val/`` or
``test/`` is recognised. Nothing is decoded here.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgecil.errors import DataError
from edgecil_runtime.images import EXTENSIONS, is_image_name

IMBALANCE = 5
"""Ratio of the largest to the smallest class from which on imbalance is reported."""
_ENDINGS = ", ".join(e[1:] for e in EXTENSIONS)
_LISTED = 5


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder of class folders.

    ``labels[i]`` is the index in ``classes`` of the image at ``paths[i]``; classes are sorted
    as written, images by class and path. ``test`` is the ``val/`` or ``test/`` folder beside
    ``train/``, or None. ``notes`` are sentences for the user.
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    test: ImageFolder | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of images of each class."""
        found = Counter(self.labels)
        return tuple(found[label] for label in range(len(self.classes)))


def folded(name: str) -> str:
    """Return the form in which two class names are compared: without case, Unicode composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def scan(folder: str | os.PathLike[str]) -> ImageFolder:
    """Return the classes and images of ``folder``, and of its test folder when it has one.

    Raises:
        DataError: no such folder, no class folders, an empty class, unprintable class names or
            names that differ in case or Unicode form alone.
    """
    root = Path(folder)
    if not root.exists():
        raise DataError(f"{root}: no such folder", hint="give a folder that holds class folders")
    if not root.is_dir():
        raise DataError(
            f"{root}: expected a folder of class folders, got a file",
            hint="give the folder that holds the class folders",
        )
    train, test, notes = _splits(root)
    found = _scan_classes(train)
    return replace(found, test=_scan_classes(test) if test else None, notes=notes + found.notes)


def scan_all(folder: str | os.PathLike[str]) -> ImageFolder:
    """Return all images at any depth of ``folder``, of whatever: one class, called like the folder.

    Raises:
        DataError: no such folder, or no image in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of images")
    images, _ = _files(root, deep=True)
    if not images:
        raise DataError(f"{root}: no image ({_ENDINGS}) in it")
    return ImageFolder(root, (root.name,), tuple(images), (0,) * len(images))


def _splits(root: Path) -> tuple[Path, Path | None, tuple[str, ...]]:
    """Return the training folder, the test folder or None, and notes."""
    names = _visible_folders(root)
    tests = [name for name in ("val", "test") if name in names]
    # A class may be called "train": it holds images where a split holds class folders.
    alone = {"train", *tests} == set(names)
    nested = "train" in names and bool(_visible_folders(root / "train"))
    if not (nested and (tests or alone)) and not (tests and alone):
        return root, None, ()
    if not tests:
        return root / "train", None, ()
    ignored = [name for name in names if name not in ("train", tests[0])]
    notes = [f"train/ is learned from, {tests[0]}/ is for testing"]
    if ignored:
        notes.append(f"left out beside train/: {listed(f'{name}/' for name in ignored)}")
    return root / "train", root / tests[0], tuple(notes)


def _visible_folders(root: Path) -> list[str]:
    try:
        entries = list(os.scandir(root))
    except OSError as error:
        raise DataError(f"{root}: cannot read this folder: {error.strerror}") from None
    return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _scan_classes(root: Path) -> ImageFolder:
    classes = _visible_folders(root)
    loose, strange = _files(root, deep=False)
    if not classes:
        lying = f"; {_many(len(loose), 'image')} lie loose in it" if loose else ""
        raise DataError(
            f"{root}: expected one folder of images per class, got no folder{lying}",
            hint=f"move the images of each class to {root}/<class name>/",
        )
    _check_names(root, classes)
    paths: list[Path] = []
    labels: list[int] = []
    empty: list[str] = []
    for label, name in enumerate(classes):
        images, others = _files(root / name, deep=True)
        paths += images
        labels += [label] * len(images)
        strange += others
        if not images:
            empty.append(name)
    if empty:
        plural = len(empty) > 1
        raise DataError(
            f"{root}: no image ({_ENDINGS}) in class{'es' if plural else ''} {listed(empty)}",
            hint=f"add images to {'these folders' if plural else 'this folder'} or remove "
            f"{'them' if plural else 'it'}",
        )
    done = ImageFolder(root, tuple(classes), tuple(paths), tuple(labels))
    return replace(done, notes=_notes(done, loose, strange))


def _files(root: Path, *, deep: bool) -> tuple[list[Path], list[Path]]:
    """Return the images of a folder, sorted, and its other visible files."""
    images: list[Path] = []
    others: list[Path] = []

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot read this folder: {error.strerror}") from None

    for base, folders, names in os.walk(root, onerror=stop):
        folders[:] = [name for name in folders if deep and not name.startswith(".")]
        for name in names:
            if is_image_name(name):
                images.append(Path(base, name))
            elif not name.startswith("."):
                others.append(Path(base, name))
    return sorted(images), sorted(others)


def _check_names(root: Path, classes: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in classes:
        if not name.isprintable():
            raise DataError(
                f"{root}: the class name {name!r} holds characters that cannot be printed",
                hint="rename the folder",
            )
        twin = seen.setdefault(folded(name), name)
        if twin != name:
            raise DataError(
                f"{root}: the classes {twin!r} and {name!r} have equal names but for upper and "
                "lower case or the Unicode form",
                hint="rename one of the folders, or put their images together",
            )


def _notes(folder: ImageFolder, loose: list[Path], strange: list[Path]) -> tuple[str, ...]:
    notes = []
    if loose:
        notes.append(f"{_many(len(loose), 'image')} beside the class folders left out")
    if strange:
        first = strange[0].relative_to(folder.root)
        notes.append(
            f"{_many(len(strange), 'file')} not ending in {_ENDINGS} left out, first {first}"
        )
    counts = folder.counts
    single = [name for name, count in zip(folder.classes, counts, strict=True) if count == 1]
    if single:
        notes.append(f"only one image in class{'es' * (len(single) > 1)} {listed(single)}")
    low, high = min(counts), max(counts)
    if high >= IMBALANCE * low:
        least, most = (folder.classes[counts.index(count)] for count in (low, high))
        notes.append(
            f"imbalanced classes: from {_many(low, 'image')} ({least}) to {high:,} ({most})"
        )
    return tuple(notes)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def listed(names: Iterable[str]) -> str:
    """Return the first few of some names, and how many more there are."""
    every = list(names)
    more = len(every) - _LISTED
    return ", ".join(every[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def check_new(classes: Sequence[str], known: Sequence[str]) -> None:
    """Do nothing when no class of ``classes`` is among the ``known`` ones.

    Raises:
        DataError: some are, compared without case and Unicode form; names them.
    """
    old = {folded(name) for name in known}
    twice = [name for name in classes if folded(name) in old]
    if twice:
        plural = len(twice) > 1
        raise DataError(
            f"{'these classes are' if plural else 'this class is'} known already: {listed(twice)}",
            hint=f"remove {'these folders' if plural else 'this folder'} from the new data, or "
            "learn more images of known classes: --update-known",
        )


def left_out(folder: ImageFolder, unknown: Sequence[str]) -> str:
    """Return a sentence for the user about classes of ``folder`` that nothing is known of."""
    return f"left out of {folder.root}, not learned: {listed(unknown)}"


def unknown_classes(folder: ImageFolder, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes of ``folder`` that are not among ``classes``."""
    known = {folded(name) for name in classes}
    return tuple(name for name in folder.classes if folded(name) not in known)


def align(folder: ImageFolder, classes: Sequence[str]) -> ImageFolder:
    """Return the images of ``folder`` whose class is in ``classes``, labelled by their place there.

    Test data may hold classes that are not learned yet: these are left out with a note, as is
    said of classes without test images.

    Raises:
        DataError: no class is common to both.
    """
    place = {folded(name): row for row, name in enumerate(classes)}
    rows = [place.get(folded(name)) for name in folder.classes]
    kept = [
        (path, row)
        for path, label in zip(folder.paths, folder.labels, strict=True)
        if (row := rows[label]) is not None
    ]
    if not kept:
        raise DataError(
            f"{folder.root}: none of its classes ({listed(folder.classes)}) is among the known "
            f"ones ({listed(classes)})"
        )
    notes = list(folder.notes)
    unknown = unknown_classes(folder, classes)
    missing = [name for row, name in enumerate(classes) if row not in rows]
    if unknown:
        notes.append(left_out(folder, unknown))
    if missing:
        notes.append(f"no image in {folder.root} of: {listed(missing)}")
    paths, labels = zip(*kept, strict=True)
    return replace(
        folder, classes=tuple(classes), paths=paths, labels=labels, test=None, notes=tuple(notes)
    )


def fingerprint(folder: ImageFolder) -> str:
    """Return a SHA-256 (hex) over relative path, size and time of change of every image.

    A resumed run compares it, so that it does not continue on other data. Contents are not
    read: that would take as long as decoding them.

    Raises:
        DataError: an image has gone since the folder was scanned.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.paths):
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from None
        name = os.fsencode(path.relative_to(folder.root).as_posix())
        digest.update(b"%b\0%d %d\0" % (name, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def of_labels(folder: ImageFolder, labels: Collection[int]) -> ImageFolder:
    """Return the images of ``folder`` that have one of ``labels``, at least one image."""
    pairs = zip(folder.paths, folder.labels, strict=True)
    paths, kept = zip(*((path, label) for path, label in pairs if label in labels), strict=True)
    return replace(folder, paths=paths, labels=kept)
