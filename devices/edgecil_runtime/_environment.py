"""Environment variables that only work before numpy or onnxruntime is imported.

A value that somebody set on purpose is left alone.
"""

from __future__ import annotations

import os
import sys

_M_TRIM, _M_MMAP, _M_ARENA_MAX = -1, -3, -8  # parameters of mallopt(3)
_BLOCK = 1 << 16


def silence_telemetry() -> None:
    """Keep onnxruntime (1.29 and later) from reporting use over the network.

    Its opt-out is read when the library is loaded: by default it sends a persistent device
    identifier, hashes of the graph and the model's file name by HTTPS, and keeps a thread and
    a database for that.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def prepare_device() -> None:
    """Keep numpy's BLAS from starting a thread per core, which the runtime never uses."""
    if "numpy" not in sys.modules:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def tighten_heap() -> None:
    """Keep glibc from holding freed memory: one arena, and large blocks mapped on their own.

    The environment variables of the same meaning must be there before the process starts.
    """
    import ctypes

    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # not glibc
        return
    for parameter, value in ((_M_ARENA_MAX, 1), (_M_TRIM, _BLOCK), (_M_MMAP, _BLOCK)):
        library.mallopt(parameter, value)
