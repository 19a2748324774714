"""The CPU of this device: which instruction sets it has."""

from __future__ import annotations

import os
from typing import List

# Those that onnxruntime chooses its kernels by.
_TELLING = (
    *("sse4_1", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl"),
    *("avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8"),
    *("neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)


def cpu_flags(path: str = "/proc/cpuinfo") -> List[str]:
    """Return the instruction sets of the first CPU; empty where the system does not tell."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() in ("flags", "Features"):
                    return value.split()
    except OSError:
        pass
    return []


def instruction_sets() -> List[str]:
    """Return the machine, and those instruction sets of its CPU that onnxruntime looks at."""
    flags = set(cpu_flags())
    return [os.uname().machine, *(flag for flag in _TELLING if flag in flags)]
