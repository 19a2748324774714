"""Where decoded images live while they are trained on."""

from __future__ import annotations

from pathlib import Path

import torch

from edgecil.data.images import ImageSet
from edgecil.errors import DataError
from edgecil.units import format_bytes

DEVICE_SHARE = 4
"""Images live on a GPU when they take at most one part in this many of its free memory."""

CGROUP = Path("/sys/fs/cgroup")
_CGROUP_FILES = (  # version 2, version 1: limit, used, statistics
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


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
    """Return the bytes that may still be allocated on the host: the machine's, or the container's.

    Page cache counts as free, as the kernel does (``MemAvailable``).
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for limit, used, statistics in _CGROUP_FILES:
        most, now = _number(CGROUP / limit), _number(CGROUP / used)
        if most is not None and now is not None:
            free.append(most - now + _reclaimable(CGROUP / statistics))
    return max(0, min(free))


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
            hint="learn fewer classes at once",
        )


def residence(needed: int, device: torch.device) -> torch.device:
    """Return where ``needed`` bytes of pixels live: ``device``, or the host's memory.

    On a GPU they may take a quarter of what is free, the rest is for training.
    """
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    return device if needed * DEVICE_SHARE <= free else torch.device("cpu")


def place(images: ImageSet, device: torch.device) -> ImageSet:
    """Return the set where :func:`residence` puts it; pixels and labels together."""
    return images.to(residence(images.pixels.nbytes, device))
