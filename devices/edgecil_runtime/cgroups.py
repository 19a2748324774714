"""The memory cgroup of this process: what limit the kernel keeps, if it keeps any."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Optional, Tuple

_UNLIMITED_V1 = 1 << 60  # what v1 shows without a limit is near the largest 64-bit number


class MemoryCgroup(NamedTuple):
    """Version 1 or 2 of the interface, and the smallest limit in bytes; None: not limited."""

    version: int
    limit: Optional[int]


def memory_cgroup(proc: str = "/proc/self", root: str = "/sys/fs/cgroup") -> Optional[MemoryCgroup]:
    """Return the memory cgroup of this process, or None where the kernel has no such controller.

    A limit of any group above counts as well.
    """
    groups = dict(_group(line) for line in _text(Path(proc, "cgroup")).splitlines())
    for controllers, path in groups.items():
        if "memory" in controllers.split(","):
            limit = _smallest(Path(root, "memory"), path, "memory.limit_in_bytes")
            return MemoryCgroup(1, limit)
    if "" in groups and "memory" in _text(Path(root, "cgroup.controllers")).split():
        return MemoryCgroup(2, _smallest(Path(root), groups[""], "memory.max"))
    return None


def _group(line: str) -> Tuple[str, str]:
    # "4:memory,cpu:/user" of version 1, "0::/user" of version 2: controllers and path.
    _, _, rest = line.partition(":")
    controllers, _, path = rest.partition(":")
    return controllers, path


def _smallest(base: Path, path: str, name: str) -> Optional[int]:
    # Inside a container the path may not exist: its own group is then mounted at the base.
    parts = [part for part in path.split("/") if part]
    folders = [base.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    found = [_text(folder / name).strip() for folder in folders]
    limits = [int(text) for text in found if text.isdigit()]
    return min((limit for limit in limits if limit < _UNLIMITED_V1), default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""
