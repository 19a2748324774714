"""Opening the files of a bundle: plain files only, whatever lies under their names."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Iterator, NamedTuple, Tuple

from edgecil_runtime.errors import BundleError


class Stamp(NamedTuple):
    """What tells one state of a file from another; the kernel sets ``changed_ns`` at a write."""

    device: int
    inode: int
    bytes: int
    changed_ns: int


def read_plain_file(path: Path, most: int) -> bytes:
    """Return the content of a file that is neither a link nor a device, of ``most`` bytes.

    Raises:
        BundleError: missing, not a plain file, or larger.
    """
    with open_plain(path) as (file, status):
        if status.st_size > most:
            raise BundleError(f"{path}: {status.st_size} bytes, at most {most} allowed")
        # Not most + 1: a buffer of that size would be made, however small the file is.
        data: bytes = file.read(status.st_size + 1)
    if len(data) > status.st_size:
        raise BundleError(f"{path}: grew while it was read")
    return data


@contextmanager
def open_plain(path: Path) -> Iterator[Tuple[BinaryIO, os.stat_result]]:
    """Open a file for reading that is neither a link nor a device, and give its status.

    Raises:
        BundleError: missing, not a plain file, or it cannot be read.
    """
    # Checked on the open descriptor, so that nobody can swap the file in between; opening a
    # FIFO without O_NONBLOCK would wait for its writer.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BundleError(
                f"{path}: is a symbolic link; a bundle holds plain files only"
            ) from None
        plain = error.errno not in (errno.ENXIO, errno.ENODEV)  # sockets, devices without driver
        reason = error.strerror if plain else "is not a plain file"
        raise BundleError(f"{path}: {reason}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise BundleError(f"{path}: is not a plain file")
    with open(descriptor, "rb") as file:
        try:
            yield file, status
        except OSError as error:
            raise BundleError(f"{path}: {error.strerror}") from None


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the stamp of a file with this status."""
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)
