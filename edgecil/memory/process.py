"""Memory of this process as the kernel counts it, and of a GPU as torch does."""

from __future__ import annotations

import resource
from pathlib import Path

import torch


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


def watch_device(device: torch.device) -> None:
    """Begin to measure the peak of a GPU's memory; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def device_peak(device: torch.device) -> int | None:
    """Return the most bytes of a GPU that tensors took at once; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
