"""Where decoded images live while they are trained on: GPU, host memory or disk."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import torch

from edgecil.data.images import ImageSet
from edgecil.errors import DataError
from edgecil.settings import Stream
from edgecil.units import format_bytes

DEVICE_SHARE = 4
"""Images live on a GPU when they take at most one part in this many of its free memory."""
HOST_SHARE = 2
"""Images live in host memory when they take at most one part in this many of what is free."""

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
_VERSION_2 = ("memory.max", "memory.current")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
_LIMITS = ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:"))


def pixel_bytes(count: int, resize: int) -> int:
    """Return the bytes of ``count`` decoded images of ``resize`` x ``resize`` pixels."""
    return count * resize * resize * 3


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def free_host_bytes() -> int:
    """Return the bytes that may still be allocated on the host.

    The least of what the machine has available, what the control groups of this process leave
    (its own and those above it, version 1 or 2) and what its limits of address space and data
    leave. Page cache counts as free, as the kernel does (``MemAvailable``).
    """
    free = [_kilobytes(Path("/proc/meminfo"), "MemAvailable:")]
    for folder, (limit, used) in _cgroups():
        most, now = _number(folder / limit), _number(folder / used)
        if most is not None and now is not None:
            free.append(most - now + _reclaimable(folder / "memory.stat"))
    for limit_kind, used_name in _LIMITS:
        most, _ = resource.getrlimit(limit_kind)
        if most != resource.RLIM_INFINITY:
            free.append(most - _kilobytes(Path("/proc/self/status"), used_name))
    return max(0, min(free))


def _kilobytes(path: Path, name: str) -> int:
    """Return the bytes that a file of ``/proc`` gives in kB on the line ``name``."""
    lines = (line.split() for line in path.read_text().splitlines())
    return next(int(words[1]) * 1024 for words in lines if words and words[0] == name)


def _cgroups() -> Iterator[tuple[Path, tuple[str, str]]]:
    """Yield the folders of this process's memory groups and the names of limit and use in them.

    Inside a container the path may be one of the host and not be there; the root always is.
    """
    for line in OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (CGROUP / "memory", _VERSION_1) if controllers else (CGROUP, _VERSION_2)
        folder = root / path.lstrip("/")
        for above in (folder, *folder.parents):
            yield above, names
            if above == root:
                break


def _reclaimable(statistics: Path) -> int:
    """Return the bytes of file cache that a container gives back under pressure."""
    try:
        values = dict(line.split() for line in statistics.read_text().splitlines())
    except OSError:
        return 0
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))


def require_host(needed: int, what: str) -> None:
    """Do nothing when ``needed`` bytes fit into the host's free memory.

    Raises:
        DataError: they do not; says how many are needed and how many there are.
    """
    free = free_host_bytes()
    if needed > free:
        raise DataError(
            f"{what} need {format_bytes(needed)} ({needed:,} bytes) of memory decoded, "
            f"{format_bytes(free)} ({free:,} bytes) are free",
            hint="stream them from disk: --stream yes",
        )


def streams(needed: int, stream: Stream) -> bool:
    """Return whether ``needed`` bytes of pixels are streamed from disk: asked for, or too many."""
    return stream == "yes" or (stream == "auto" and needed * HOST_SHARE > free_host_bytes())


def residence(needed: int, device: torch.device) -> torch.device:
    """Return where ``needed`` bytes of pixels live: ``device``, or the host's memory.

    On a GPU they may take a quarter of what is free, the rest is for training.
    """
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    return device if needed * DEVICE_SHARE <= free else torch.device("cpu")


def place(images: ImageSet, device: torch.device) -> ImageSet:
    """Return the set where :func:`residence` puts it, or on disk; pixels and labels together."""
    return images if images.on_disk else images.to(residence(images.pixels.nbytes, device))
