"""Decoded images in a file on disk, for sets that are larger than memory.

Images are decoded once, into a file without a name: the system frees it when the process ends,
however it ends. Rows are read by position and not mapped, so that a failing disk is an error and
not a crash, and the pages stay cache that the kernel may take back.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgecil.errors import DataError, WorkspaceError
from edgecil.units import format_bytes

Index = slice | Tensor


def _existing(folder: Path) -> Path:
    """Return ``folder`` or the nearest of its parents that exists: it is on the same disk."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


class PixelFile:
    """Room for ``count`` images uint8 ``(R, R, 3)`` on the disk of ``folder``.

    Several threads may write and read at once.

    Raises:
        DataError: the disk has not enough room, or cannot be written.
    """

    def __init__(self, folder: Path, count: int, resize: int) -> None:
        self.shape = (count, resize, resize, 3)
        self._row_bytes = resize * resize * 3
        self.folder = _existing(folder)
        try:
            self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
            if count:
                # Taken at once, so that a full disk is noticed before hours of decoding.
                os.posix_fallocate(self._file.fileno(), 0, count * self._row_bytes)
        except OSError as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError) -> DataError:
        needed, status = self.shape[0] * self._row_bytes, os.statvfs(self.folder)
        free = status.f_bavail * status.f_frsize
        return DataError(
            f"{self.shape[0]:,} decoded images need {format_bytes(needed)} ({needed:,} bytes) on "
            f"the disk of {self.folder}, {format_bytes(free)} are free: {error.strerror}",
            hint="free some space, or learn fewer classes at once",
        )

    def __len__(self) -> int:
        return self.shape[0]

    def __setitem__(self, row: int, image: NDArray[np.uint8]) -> None:
        """Write one image ``(R, R, 3)``.

        Raises:
            DataError: the disk is full or fails.
        """
        data = np.ascontiguousarray(image).data
        try:
            written = os.pwrite(self._file.fileno(), data, row * self._row_bytes)
        except OSError as error:
            raise self._failure(error) from None
        if written != self._row_bytes:
            raise self._failure(OSError(0, f"only {written} of {self._row_bytes} bytes fitted"))

    def announce(self, rows: Sequence[int]) -> None:
        """Let the disk begin to read several images, all at once."""
        for row in rows:
            os.posix_fadvise(
                self._file.fileno(), row * self._row_bytes, self._row_bytes, os.POSIX_FADV_WILLNEED
            )

    def read(self, row: int, out: NDArray[np.uint8]) -> None:
        """Write an image into the contiguous array ``out`` ``(R, R, 3)``.

        Raises:
            WorkspaceError: the disk fails.
        """
        try:
            got = os.preadv(self._file.fileno(), [out.data], row * self._row_bytes)
        except OSError as error:
            raise WorkspaceError(f"the disk of {self.folder} fails: {error.strerror}") from None
        if got != self._row_bytes:
            raise WorkspaceError(
                f"the disk of {self.folder} fails: got {got} bytes of {self._row_bytes}"
            )


Part = PixelFile | NDArray[np.uint8]


class DiskPixels:
    """Images uint8 ``(N, R, R, 3)``, some or all of them on disk; nothing of these is in memory.

    What a set needs of a tensor it has under the same name: indexing selects rows, and copies
    none; :meth:`index_select` reads.
    """

    device = torch.device("cpu")

    def __init__(self, parts: Sequence[Part], rows: NDArray[np.int64] | None = None) -> None:
        self._parts = tuple(parts)
        self._starts = list(accumulate(map(len, parts), initial=0))
        self._rows = np.arange(self._starts[-1]) if rows is None else rows
        self.shape = (len(self._rows), *parts[0].shape[1:])

    @classmethod
    def joined(cls, sets: Sequence[Tensor | DiskPixels]) -> DiskPixels:
        """Return all images of several sets, in order; tensors are of the host."""
        every = [cls([s.numpy()]) if isinstance(s, Tensor) else s for s in sets]
        starts = accumulate((s._starts[-1] for s in every), initial=0)
        rows = [s._rows + start for s, start in zip(every, starts, strict=False)]
        return cls([part for s in every for part in s._parts], np.concatenate(rows))

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all images, as if they were in memory."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __getitem__(self, index: Index) -> DiskPixels:
        chosen = index if isinstance(index, slice) else index.cpu().numpy()
        return DiskPixels(self._parts, self._rows[chosen])

    def room(self) -> PixelFile:
        """Return room for as many other images on the same disk.

        Raises:
            DataError: the disk has not enough of it.
        """
        folder = next(part.folder for part in self._parts if isinstance(part, PixelFile))
        return PixelFile(folder, len(self), self.shape[1])

    def to(self, device: torch.device | str) -> DiskPixels:
        """Return the set: it stays on disk, batches go to the device."""
        return self

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return the images at ``index`` int64 ``(n,)`` along axis 0, in memory.

        Raises:
            WorkspaceError: the disk fails.
        """
        out = torch.empty((len(index), *self.shape[1:]), dtype=torch.uint8)
        self.read(index.cpu().numpy(), out.numpy())
        return out

    def read(self, index: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Write the images at ``index`` into ``out`` ``(n, R, R, 3)``; numpy and reads alone.

        Raises:
            WorkspaceError: the disk fails.
        """
        rows = self._rows[index]
        found = [bisect_right(self._starts, row) - 1 for row in rows.tolist()]
        local = [row - self._starts[n] for row, n in zip(rows.tolist(), found, strict=True)]
        for number, part in enumerate(self._parts):
            if isinstance(part, PixelFile):
                part.announce([row for row, n in zip(local, found, strict=True) if n == number])
        for place, (row, number) in enumerate(zip(local, found, strict=True)):
            part = self._parts[number]
            if isinstance(part, PixelFile):
                part.read(row, out[place])
            else:
                out[place] = part[row]
