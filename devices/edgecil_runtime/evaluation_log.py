"""What an evaluation found so far, in a file that survives a power cut.

    {"schema": 1, "model": "<SHA-256>", "images": "<SHA-256>"}      which evaluation this is
    [3, 3, true, 1.27]                       true class, answer, among the best five, milliseconds
    [3, null, false, 0.0]                    an image that could not be read

One line per image, in order. After a cut the file may end in part of a line, or in a stretch of
zeros: what does not parse, and all behind it, is cut off and done again.
"""

from __future__ import annotations

import json
import os
from typing import Any, BinaryIO, Iterator, Mapping, NamedTuple, Optional

from edgecil_runtime.container import sync_directory
from edgecil_runtime.errors import InputError
from edgecil_runtime.images import PathLike
from edgecil_runtime.strict_json import decode_json

SCHEMA = 1
# Flash wears by every sync; this many images at most are done twice.
IMAGES_PER_SYNC = 100
_LONGEST_LINE = 1000


class Outcome(NamedTuple):
    """What came of one image; ``predicted`` is None when it could not be read."""

    true: int
    predicted: Optional[int]
    in_top5: bool
    milliseconds: float


class EvaluationLog:
    """The outcomes of one evaluation: those of earlier runs first, then new ones are added.

    ``identity`` says which evaluation it is, as text by name; use it in a ``with`` statement.

    Raises:
        InputError: the file is of another evaluation, or is none.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: PathLike, identity: Mapping[str, str], classes: int) -> None:
        self.path = os.fspath(path)
        self._classes = classes
        self._unsynced = 0
        header = json.dumps({"schema": SCHEMA, **identity}).encode() + b"\n"
        self._file: BinaryIO = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")  # noqa: SIM115
        found = self._file.readline(_LONGEST_LINE)
        if found == header:
            return
        if not header.startswith(found):  # more than a header that was cut off
            self._file.close()
            raise InputError(
                f"{self.path}: belongs to another model or other images, or is something else",
                hint="remove it to start again, or give another file",
            )
        self._file.seek(0)
        self._file.truncate()
        self._file.write(header)
        self._sync()
        sync_directory(os.path.dirname(os.path.abspath(path)))

    def __enter__(self) -> EvaluationLog:
        return self

    def __exit__(self, *_: Any) -> None:
        with self._file:
            self._sync()

    def earlier(self) -> Iterator[Outcome]:
        """Yield the outcomes of earlier runs; iterate to the end before adding."""
        end = self._file.tell()
        for line in iter(lambda: self._file.readline(_LONGEST_LINE), b""):
            outcome = _decoded(line, self._classes)
            if outcome is None:
                break
            end += len(line)
            yield outcome
        self._file.seek(end)
        self._file.truncate()

    def add(self, outcome: Outcome) -> None:
        """Write an outcome; it is on the disk after at most ``IMAGES_PER_SYNC`` of them."""
        self._file.write(json.dumps(outcome).encode() + b"\n")
        self._unsynced += 1
        if self._unsynced >= IMAGES_PER_SYNC:
            self._sync()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._unsynced = 0


def _decoded(line: bytes, classes: int) -> Optional[Outcome]:
    try:
        true, predicted, in_top5, milliseconds = decode_json(line)
    except (ValueError, TypeError):
        return None
    good = line.endswith(b"\n") and _is_class(true, classes) and type(in_top5) is bool
    good = good and (predicted is None or _is_class(predicted, classes))
    if not good or type(milliseconds) is not float or milliseconds < 0:
        return None
    return Outcome(true, predicted, in_top5, milliseconds)


def _is_class(value: Any, classes: int) -> bool:
    return type(value) is int and 0 <= value < classes
