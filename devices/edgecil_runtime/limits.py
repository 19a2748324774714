"""The memory limit of a process: what it is, keeping it, and noticing that it is too tight.

Sizes are bytes; MB is 10^6 bytes.
"""

from __future__ import annotations

import atexit
import os
import signal
import time
from typing import Any, List, NamedTuple, Optional, Union

from edgecil_runtime.cgroups import memory_cgroup
from edgecil_runtime.errors import MemoryLimitError
from edgecil_runtime.memory import format_size, parse_size, round_up, usage

AUTO = "auto"
_THREAD_STACK = 9_000_000  # reserved address space of one more thread, hardly touched

# Reading libraries from a cold disk takes some 600 major faults, with the 128 kB of readahead
# that cards and disks have. A process that goes on after that reads the same pages again.
_COLD_FAULTS = 1500
_FAULTS_PER_SECOND = 30
_SECONDS = 3


class Limit(NamedTuple):
    """A limit in bytes, and who set it."""

    bytes: int
    source: str


def resolve(memory_limit: Union[str, int, None]) -> Optional[Limit]:
    """Return the limit that ``"96MB"``, a number of bytes, ``"auto"`` or None stands for.

    ``"auto"`` is the smallest of the memory cgroup's limit, RLIMIT_AS, RLIMIT_DATA and the
    machine's memory.

    Raises:
        InputError: not a size.
    """
    if memory_limit is None:
        return None
    if memory_limit == AUTO:
        return min(_found(), key=lambda limit: limit.bytes, default=None)
    return Limit(parse_size(memory_limit), "as asked")


def of_process(memory_limit: Union[str, int, None]) -> Optional[Limit]:
    """Return the limit of a whole process: the one asked for, or a smaller one of the system.

    Raises:
        InputError: not a size.
    """
    asked = resolve(memory_limit)
    return asked and min([asked, *_found()], key=lambda limit: limit.bytes)


def _found() -> List[Limit]:
    import resource

    found = []
    group = memory_cgroup()
    if group is not None and group.limit is not None:
        found.append(Limit(group.limit, f"memory cgroup v{group.version}"))
    for name in ("RLIMIT_AS", "RLIMIT_DATA"):
        soft = resource.getrlimit(getattr(resource, name))[0]
        if soft != resource.RLIM_INFINITY:
            found.append(Limit(soft, name))
    try:
        pages = os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return found
    if pages > 0:
        found.append(Limit(pages * os.sysconf("SC_PAGE_SIZE"), "memory of this machine"))
    return found


def set_hard_stop(limit: int, threads: int = 1) -> bool:
    """Make allocations fail once this process would exceed ``limit`` bytes; return if it is set.

    RLIMIT_DATA is set to what is reserved now plus what the limit leaves above the resident
    size, so allocations beyond it raise instead of inviting the kernel's killer. Acts on the
    whole process and cannot tell reserved from used memory; call it after all imports.
    """
    now = usage()
    if now is None:
        return False
    import resource

    room = max(0, limit - now.resident) + (threads - 1) * _THREAD_STACK
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = now.data + room
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    return True


class FaultWatch:
    """Ends a process of our own that only reads its own code from the disk again and again.

    A kernel limit that is a little too tight does not kill, it makes everything a hundred times
    slower. Every second a signal looks at the major faults, in the main thread.
    """

    def __init__(self, limit: Optional[Limit]) -> None:
        self._limit = limit
        self._floor = _COLD_FAULTS
        self._faults = 0
        self._time = time.monotonic()
        self._bad_seconds = 0
        self.needed = 0
        """Bytes that are predicted to do, once they are known."""

    def start(self) -> None:
        """Begin to watch; the signal is SIGALRM."""
        # Python gives up its handlers while it ends, and the signal would then kill it.
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)

    def settled(self) -> None:
        """Everything that is needed was used once: from now on every major fault counts."""
        now = usage()
        self._floor = now.major_faults if now is not None else 0

    def _look(self, *_: Any) -> None:
        now = usage()
        if now is not None:
            self.check(now.major_faults, time.monotonic())

    def check(self, faults: int, now: float) -> None:
        """Take in the number of major faults so far, at a time in seconds.

        Raises:
            MemoryLimitError: there are too many of them for too long.
        """
        rate = (faults - self._faults) / max(1e-3, now - self._time)
        self._faults, self._time = faults, now
        bad = rate > _FAULTS_PER_SECOND and faults > self._floor
        self._bad_seconds = self._bad_seconds + 1 if bad else 0
        if self._bad_seconds >= _SECONDS:
            self._bad_seconds = 0
            raise self._thrashing(rate)

    def _thrashing(self, rate: float) -> MemoryLimitError:
        limit = self._limit.bytes if self._limit else 0
        shown = f" within {format_size(limit)} ({self._limit.source})" if self._limit else ""
        # A prediction that said it would fit was too low: ask for a quarter more.
        enough = self.needed if self.needed > limit else 1.25 * max(limit, self.needed)
        return MemoryLimitError(
            f"too little memory{shown}: thrashing, {rate:.0f} pages of code and data a second "
            "are read from the disk again",
            hint=f"raise the limit to {round_up(enough)}",
        )
