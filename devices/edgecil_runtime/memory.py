"""What a process uses, what a model will need, and giving memory back.

Sizes are bytes; MB is 10^6 bytes.
"""

from __future__ import annotations

import ctypes
import math
import re
import sys
from pathlib import Path
from typing import Dict, NamedTuple, Optional, Tuple, Union

from edgecil_runtime.errors import InputError, MemoryLimitError
from edgecil_runtime.manifest import Manifest

_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
# Measured with onnxruntime 1.31 on x86-64 over networks of 0.2 to 70 MB of weights. The first
# session touches this much of onnxruntime's code and heap; the first image file this much of
# Pillow's.
_SESSION_BYTES = 15_000_000
_NEXT_SESSION_BYTES = 3_000_000
_PILLOW_BYTES = 6_000_000


class Plan(NamedTuple):
    """One way to load a model: onnxruntime's optimisation level, and what it costs.

    The peak while loading is ``load`` times the weights; while running it is ``run`` times the
    weights plus ``activations`` times the planned activations. Without ``packs`` no weights are
    rearranged for speed.
    """

    name: str
    level: str
    load: float
    run: float
    activations: float
    packs: bool = True


# A baked graph is loaded as it is. Its weights are mapped: int8 kernels take packed copies in
# their place, fp32 kernels the mapped file itself.
BAKED: Dict[str, Plan] = {
    "int8": Plan("baked", "ORT_DISABLE_ALL", 1.1, 1.0, 6.0),
    "fp32": Plan("baked", "ORT_DISABLE_ALL", 1.05, 1.05, 1.5),
}

# From the fastest to the smallest. int8: packed weights stand beside the stored ones while
# loading; a convolution accumulates in 32 bits beside its 8-bit input and output; without
# packing it takes 2 to 3 times longer. fp32: blocked copies of the weights make "fast" about a
# quarter faster on x86, "lean" does without them.
PLANS: Dict[str, Tuple[Plan, ...]] = {
    "int8": (
        Plan("fast", "ORT_ENABLE_ALL", 2.1, 1.35, 6.0),
        Plan("unpacked", "ORT_ENABLE_ALL", 1.6, 1.1, 6.0, packs=False),
    ),
    "fp32": (
        Plan("fast", "ORT_ENABLE_ALL", 3.6, 1.1, 1.5),
        Plan("lean", "ORT_ENABLE_EXTENDED", 1.25, 1.1, 1.5),
    ),
}


class Need(NamedTuple):
    """Predicted peak memory in bytes, by what takes it, at the moment of the peak.

    ``interpreter`` is resident before loading (0 when only growth counts), ``runtime`` what
    onnxruntime and Pillow touch first, ``weights`` as stored, ``packed`` what packing and
    loading add to them, ``activations`` intermediate results, ``image`` one decoded input.
    """

    interpreter: int
    runtime: int
    weights: int
    packed: int
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
    if isinstance(value, str) and not match[2] and size < _UNITS["mb"]:
        raise InputError(
            f"{value!r}: a memory limit of {size} bytes", hint=f"did you mean {value.strip()}MB?"
        )
    return size


def format_size(size: float) -> str:
    """Return a size in MB of 10^6 bytes, such as ``"57.3 MB"``."""
    return f"{size / 1e6:.1f} MB"


def round_up(size: float) -> str:
    """Return a size in whole MB that is at least ``size`` bytes, as the limit option takes it."""
    return f"{math.ceil(size / 1e6)}MB"


def predict_need(
    manifest: Manifest, plan: Plan, interpreter: int = 0, image: int = 0, *, first: bool = True
) -> Need:
    """Return the predicted peak of loading a model by ``plan`` and predicting one image.

    ``interpreter`` is the memory in use before (0 to predict growth), ``image`` the bytes of
    decoding and holding one input. The ``first`` session of a process touches onnxruntime's
    code and tables, later ones share them.
    """
    weights = manifest.memory.weights_bytes
    runtime = (_SESSION_BYTES if first else _NEXT_SESSION_BYTES) + _pillow_bytes()
    loading = Need(interpreter, runtime, weights, _extra(weights, plan.load), 0, 0)
    working = round(plan.activations * manifest.memory.activation_bytes)
    running = Need(interpreter, runtime, weights, _extra(weights, plan.run), working, image)
    return max(loading, running, key=lambda need: need.total)


def decoding_bytes(width: int, height: int, simple: bool = True) -> int:
    """Return the peak memory of decoding an image, the returned array included.

    ``simple`` is an upright RGB or grey jpg, png or bmp: Pillow holds 4 bytes a pixel, the array
    3, measured 7.5 in all. Webp, transparency, other modes and rotation need a second copy.
    """
    return width * height * (8 if simple else 16)


def _pillow_bytes() -> int:
    return 0 if "PIL.Image" in sys.modules else _PILLOW_BYTES


def _extra(weights: int, factor: float) -> int:
    return round((factor - 1) * weights)


def plans(precision: str, baked: bool) -> Tuple[Plan, ...]:
    """Return the ways to load a model, fastest first."""
    return (BAKED[precision], *PLANS[precision]) if baked else PLANS[precision]


def too_small(manifest: Manifest, limit: int, least: Need, spare: int) -> MemoryLimitError:
    """Return the error of a limit that ``least`` does not fit.

    The one figure in it, in whole MB, is what to raise the limit to: ``least`` and at least
    ``spare`` bytes, by which the need of one start differs from that of another.
    """
    heavy = manifest.precision == "fp32" and least.weights > 1_000_000
    smaller = ", or export the model as int8" if heavy else ""
    enough = round_up(least.total + spare)
    rest = format_size(parse_size(enough) - least.total)
    return MemoryLimitError(
        f"{manifest.directory_name} needs about {enough[:-2]} MB, the limit is "
        f"{format_size(limit)} ({least.describe()}, to spare {rest}); nothing was loaded",
        hint=f"raise the limit to {enough}{smaller}",
    )
