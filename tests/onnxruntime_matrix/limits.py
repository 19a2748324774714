"""The highest IR version and opset that the installed onnxruntime loads, found by trying.

    python tests/onnxruntime_matrix/limits.py

prints ``version IR opset``. These are the figures in ``edgecil_runtime/compatibility.py``: no
API of onnxruntime tells them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from runtime.protobuf_bytes import model


def loads(data: bytes) -> bool:
    """Return whether a model can be loaded."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


def limits() -> tuple[int, int]:
    """Return the highest IR version and opset that load."""
    ir = max(n for n in range(3, 40) if loads(model(ir=n, opset=9)))
    opset = max(n for n in range(7, 60) if loads(model(ir=8, opset=n)))
    return ir, opset


if __name__ == "__main__":
    print(onnxruntime.__version__, *limits())
