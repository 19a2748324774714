"""Pages of code: mapped libraries that the kernel may drop and read again.

Half of what a small model's process has resident is code, most of it touched once, while
importing. Under a kernel limit the code that every prediction needs competes with it, and a
process that is short of a few megabytes reads its own libraries from the disk again and again.
So: let go of all of it, predict a few times, and lock what came back. Both only make sense in a
process of our own.
"""

from __future__ import annotations

import ctypes
import os
import re
from typing import TYPE_CHECKING, Any, Iterable, Iterator, List, NamedTuple, Optional

if TYPE_CHECKING:
    from edgecil_runtime.images import PathLike

_MADV_DONTNEED = 4  # linux/mman.h
_PRESENT = 0x80  # bit 63 of a 64-bit little-endian entry of /proc/self/pagemap
_ENTRY = 8
_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+)\s*(.*)")


class Mapping(NamedTuple):
    """Addresses ``[start, stop)`` of a mapped file, of which nothing was changed in memory."""

    start: int
    stop: int


def mappings(smaps: str = "/proc/self/smaps") -> List[Mapping]:
    """Return the mapped code and constants of this process; empty where there is no Linux.

    Left out is what may be written or ever was: dropping that would lose data.
    """
    try:
        with open(smaps, encoding="ascii", errors="replace") as file:
            return list(_clean(file))
    except OSError:
        return []


def _clean(lines: Any) -> Iterator[Mapping]:
    found: Optional[Mapping] = None
    for line in lines:
        head = _HEAD.match(line)
        if head is not None:
            code = "w" not in head[3] and head[4] != "0" and head[5].startswith("/")
            found = Mapping(int(head[1], 16), int(head[2], 16)) if code else None
        elif found is not None and line.startswith("Anonymous:") and line.split()[1] == "0":
            yield found


def shed() -> None:
    """Let go of all code; what is used again comes back from the page cache, if it is there."""
    for start, stop in mappings():
        _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_DONTNEED)


def forget(files: Iterable[PathLike]) -> None:
    """Drop what the page cache holds of files and nobody has mapped."""
    if not hasattr(os, "posix_fadvise"):  # not Linux
        return
    for path in files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pin() -> int:
    """Return the bytes of code that are locked now: what is resident, as far as allowed.

    RLIMIT_MEMLOCK bounds it for everybody but root.
    """
    import resource

    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    locked = 0
    for start, stop in _resident():
        if _libc().mlock(ctypes.c_void_p(start), ctypes.c_size_t(stop - start)) != 0:
            break
        locked += stop - start
    return locked


def _resident() -> Iterator[Mapping]:
    """Yield the runs of pages of code that this process has mapped at the moment."""
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            for start, stop in mappings():
                file.seek(start // page * _ENTRY)
                entries = file.read((stop - start) // page * _ENTRY)
                flags = bytes(entry & _PRESENT for entry in entries[_ENTRY - 1 :: _ENTRY])
                for run in re.finditer(b"\x80+", flags):
                    yield Mapping(start + run.start() * page, start + run.end() * page)
    except OSError:
        return


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)
