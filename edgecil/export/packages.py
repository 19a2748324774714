"""Packages that only the export needs."""

from __future__ import annotations

import importlib.util
import os

from edgecil.errors import DependencyMissing


def require_onnxruntime() -> None:
    """Make sure that onnxruntime can be imported, and switch its telemetry off before that.

    Raises:
        DependencyMissing: no onnxruntime is installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if importlib.util.find_spec("onnxruntime") is None:
        raise DependencyMissing(
            "export needs onnxruntime, which is not installed",
            hint="pip install 'edgecil[cpu]'   (on a CUDA machine: pip install 'edgecil[gpu]')",
        )
