"""Packages that only some of the commands that ship a model need."""

from __future__ import annotations

import importlib.util

import edgecil_runtime  # noqa: F401  (importing it switches onnxruntime's telemetry off)
from edgecil.errors import DependencyMissing


def require_onnxruntime() -> None:
    """Make sure that onnxruntime can be imported; its telemetry is off.

    Raises:
        DependencyMissing: no onnxruntime is installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise DependencyMissing(
            "export needs onnxruntime, which is not installed",
            hint="pip install 'edgecil[cpu]'   (on a CUDA machine: pip install 'edgecil[gpu]')",
        )


def require_cryptography() -> None:
    """Make sure that ``cryptography`` is installed.

    Raises:
        DependencyMissing: it is not.
    """
    if importlib.util.find_spec("cryptography") is None:
        raise DependencyMissing(
            "signing needs the package cryptography, which is not installed",
            hint="pip install 'edgecil[sign]'",
        )
