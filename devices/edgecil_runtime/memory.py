"""What a process uses, what a model will need, and giving memory back.

A limit is kept in two ways. Everywhere: the need is predicted before anything is loaded, and
refused when it does not fit. In a process of our own (the command line), a hard stop comes on
top: see :func:`set_hard_stop`. There is no hard stop inside somebody else's process, because
it would act on all of it.

Sizes are bytes; MB is 10^6 bytes.
"""

from __future__ import annotations

import ctypes
import math
import re
import sys
from pathlib import Path
from typing import Dict, NamedTuple, Optional, Tuple, Union

from edgecil_runtime.errors import InputError
from edgecil_runtime.manifest import Manifest

_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
_THREAD_STACK = 9_000_000  # reserved address space of one more thread, hardly touched

# Measured with onnxruntime 1.31 on x86-64 over networks of 0.2 to 70 MB of weights. The first
# session touches this much of onnxruntime's code and heap; the first image file this much of
# Pillow's.
_SESSION_BYTES = 15_000_000
_PILLOW_BYTES = 6_000_000


class Plan(NamedTuple):
    """One way to load a model: onnxruntime's optimisation level, and what it costs.

    The peak while loading is ``load`` times the weights; while running it is ``run`` times the
    weights plus ``activations`` times the planned activations.
    """

    name: str
    level: str
    load: float
    run: float
    activations: float


# int8: packed weights stand beside the stored ones while loading; a convolution accumulates in
# 32 bits beside its 8-bit input and output. fp32: blocked copies of the weights make "fast"
# about a quarter faster on x86, "lean" does without them.
PLANS: Dict[str, Tuple[Plan, ...]] = {
    "int8": (Plan("fast", "ORT_ENABLE_ALL", 2.1, 1.35, 6.0),),
    "fp32": (
        Plan("fast", "ORT_ENABLE_ALL", 3.6, 1.1, 1.5),
        Plan("lean", "ORT_ENABLE_EXTENDED", 1.25, 1.1, 1.5),
    ),
}


class Need(NamedTuple):
    """Predicted peak memory in bytes, by what takes it, at the moment of the peak.

    ``process`` is resident before loading (0 when only growth counts), ``runtime`` what
    onnxruntime and Pillow touch first, ``weights`` as stored, ``copies`` what packing and
    loading add to them, ``activations`` intermediate results, ``image`` one decoded input.
    """

    process: int
    runtime: int
    weights: int
    copies: int
    activations: int
    image: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(self)

    def describe(self) -> str:
        """Return the parts as one line, such as ``"runtime 14.0 MB, weights 11.3 MB"``."""
        parts = self._asdict().items()
        return ", ".join(f"{name} {format_size(size)}" for name, size in parts if size >= 5e4)


class Usage(NamedTuple):
    """Memory of this process in bytes, and page faults that had to read from the disk.

    ``resident`` = ``anonymous`` + ``file_backed`` (code and mapped files, which the kernel can
    evict and read again). ``data`` is what RLIMIT_DATA counts.
    """

    resident: int
    peak: int
    anonymous: int
    file_backed: int
    data: int
    major_faults: int


def usage() -> Optional[Usage]:
    """Return the memory of this process, or None where there is no Linux ``/proc``."""
    try:
        status = Path("/proc/self/status").read_text("ascii", "replace")
        stat = Path("/proc/self/stat").read_text("ascii", "replace")
    except OSError:
        return None
    fields = {}
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if value.endswith("kB"):
            fields[name] = int(value.split()[0]) * 1024
    file_backed = fields.get("RssFile", 0) + fields.get("RssShmem", 0)
    # The command's name in parentheses may hold spaces; majflt is the tenth field after it.
    faults = int(stat.rpartition(")")[2].split()[9])
    return Usage(
        fields.get("VmRSS", 0),
        fields.get("VmHWM", 0),
        fields.get("RssAnon", 0),
        file_backed,
        fields.get("VmData", 0),
        faults,
    )


def trim() -> None:
    """Give freed heap pages back to the system, where the C library can (glibc)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # musl has no malloc_trim; it returns pages by itself
        return


def parse_size(value: Union[str, int]) -> int:
    """Return the bytes that ``"96MB"``, ``"1.5MiB"``, ``"600kB"`` or a number stand for.

    Raises:
        InputError: not a size, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(value))
    if isinstance(value, bool) or match is None or match[2].lower() not in _UNITS:
        raise InputError(f"{value!r} is not a size", hint="write it like 96MB or 64MiB")
    size = round(float(match[1]) * _UNITS[match[2].lower()])
    if size < 1:
        raise InputError(f"{value!r}: a memory limit must be positive", hint="try 96MB")
    return size


def format_size(size: float) -> str:
    """Return a size in MB of 10^6 bytes, such as ``"57.3 MB"``."""
    return f"{size / 1e6:.1f} MB"


def round_up(size: float) -> str:
    """Return a size in whole MB that is at least ``size`` bytes, as the limit option takes it."""
    return f"{math.ceil(size / 1e6)}MB"


def predict_need(manifest: Manifest, plan: Plan, process: int = 0, image: int = 0) -> Need:
    """Return the predicted peak of loading a model by ``plan`` and predicting one image.

    ``process`` is the memory in use before (0 to predict growth), ``image`` the bytes of
    decoding and holding one input.
    """
    weights = manifest.memory.weights_bytes
    runtime = _SESSION_BYTES + (0 if "PIL.Image" in sys.modules else _PILLOW_BYTES)
    loading = Need(process, runtime, weights, _extra(weights, plan.load), 0, 0)
    working = round(plan.activations * manifest.memory.activation_bytes)
    running = Need(process, runtime, weights, _extra(weights, plan.run), working, image)
    return max(loading, running, key=lambda need: need.total)


def _extra(weights: int, factor: float) -> int:
    return round((factor - 1) * weights)


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
