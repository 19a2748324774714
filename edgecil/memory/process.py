"""Memory of this process as the kernel counts it."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_memory() -> dict[str, int]:
    """Return ``peak_rss_bytes`` and the present ``anon_bytes`` of this process.

    Without ``/proc`` the anonymous part is 0.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    anonymous = 0
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                anonymous = int(line.split()[1]) * 1024
    return {"peak_rss_bytes": peak, "anon_bytes": anonymous}
