"""What every layout is read into, and what the readers share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecil.errors import DataError
from edgecil_runtime.images import is_image_name


@dataclass(frozen=True)
class Listing:
    """The images of a data set by class; ``classes`` is the data set's own order."""

    classes: tuple[str, ...]
    train: Mapping[str, Sequence[Path]]
    test: Mapping[str, Sequence[Path]]

    def __post_init__(self) -> None:
        for part, images in (("train", self.train), ("test", self.test)):
            empty = [name for name in self.classes if not images.get(name)]
            if empty:
                raise DataError(
                    f"{len(empty)} of {len(self.classes)} classes have no {part} image, the first: "
                    f"{empty[0]}",
                    hint="unpack the data set again: files are missing",
                )


def find(root: Path, fits: Callable[[Path], bool]) -> Path | None:
    """Return ``root``, or the first folder in it, or the one above it, for which ``fits``.

    So a data set is found where an archive was unpacked, and from one of its parts.
    """
    places = [root, *(p for p in visible(root) if p.is_dir()), root.absolute().parent]
    return next((place for place in places if fits(place)), None)


def locate(root: Path, wanted: str, fits: Callable[[Path], bool]) -> Path:
    """Return the folder that :func:`find` finds.

    Raises:
        DataError: there is none; ``wanted`` says what was looked for.
    """
    found = find(root, fits)
    if found is None:
        raise DataError(
            f"{root}: expected {wanted}, there or one folder further down",
            hint="give the folder that the data set was unpacked to: --data DIR",
        )
    return found


def holds(*names: str) -> Callable[[Path], bool]:
    """Return whether a folder has everything that is named."""
    return lambda folder: all((folder / name).exists() for name in names)


def visible(folder: Path) -> list[Path]:
    """Return the files and folders in a folder that are not hidden, in order of name.

    Raises:
        DataError: there is no such folder, or it cannot be read.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from None
    return [folder / name for name in names if not name.startswith(".")]


def images_in(folder: Path) -> list[Path]:
    """Return the images that lie in a folder itself, in order of name."""
    return [path for path in visible(folder) if is_image_name(path.name)]


def lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty.

    Raises:
        DataError: it is not there, or is no text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise DataError(f"{path}: expected text, found other bytes") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def columns(path: Path, count: int, separator: str | None = None) -> Iterator[list[str]]:
    """Yield the first ``count`` columns of every line of a text file.

    The last of them takes the rest of the line when ``separator`` is None.

    Raises:
        DataError: a line has fewer.
    """
    for number, line in enumerate(lines(path), start=1):
        parts = line.split(separator, count - 1 if separator is None else -1)
        if len(parts) < count:
            raise DataError(f"{path}, line {number}: expected {count} columns, got {line!r}")
        yield parts[:count]


def grouped(pairs: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    """Return the images of every class of ``(class, image)`` pairs, in their order."""
    found: dict[str, list[Path]] = {}
    for name, path in pairs:
        found.setdefault(name, []).append(path)
    return found


def require_files(paths: Iterable[Path], named_in: Path) -> None:
    """Do nothing when all images that a list names are there.

    Raises:
        DataError: some are not; the first is named.
    """
    names = Counter(path.parent for path in paths)
    present = {folder: {p.name for p in visible(folder)} for folder in names if folder.is_dir()}
    missing = [p for p in paths if p.name not in present.get(p.parent, ())]
    if missing:
        raise DataError(
            f"{missing[0]}: no such file; {len(missing)} that {named_in.name} names are missing",
            hint="unpack the data set again: files are missing",
        )
