"""Memory of this process as the kernel counts it, and of a GPU as torch does."""

from __future__ import annotations

import resource

import torch

from edgecil_runtime.memory import usage


def peak_memory() -> dict[str, int]:
    """Return ``peak_rss_bytes`` and the present ``anon_bytes`` of this process.

    Without ``/proc`` the anonymous part is 0, and the peak may be that of the parent process:
    ``ru_maxrss`` survives exec.
    """
    used = usage()
    if used is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"peak_rss_bytes": peak, "anon_bytes": 0}
    return {"peak_rss_bytes": used.peak, "anon_bytes": used.anonymous}


def watch_device(device: torch.device) -> None:
    """Begin to measure the peak of a GPU's memory; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def device_peak(device: torch.device) -> int | None:
    """Return the most bytes of a GPU that tensors took at once; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
