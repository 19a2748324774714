"""Running a graph that is still in memory, on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgecil.exporting.packages import require_onnxruntime

Scores = NDArray[np.float32]
Pixels = NDArray[np.uint8]


def open_session(model: ModelProto, threads: int = 1) -> Any:
    """Return an onnxruntime session on the CPU.

    Raises:
        DependencyMissing: onnxruntime is not installed.
    """
    require_onnxruntime()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    data = model.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def scores(session: Any, images: Iterable[Pixels]) -> Scores:
    """Return scores ``(n, C)`` of images ``(H, W, 3)``, which go through one at a time."""
    rows = [session.run(None, {"image": np.ascontiguousarray(image)[None]})[0] for image in images]
    return np.concatenate(rows)


def latency_ms(session: Any, image: Pixels, runs: int = 20) -> float:
    """Return the median time of one image ``(H, W, 3)`` in milliseconds, after warming up."""
    times = []
    for _ in range(runs + 3):
        start = time.perf_counter()
        scores(session, [image])
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times[3:]))


def noise_images(count: int, height: int, width: int) -> Pixels:
    """Return ``count`` images ``(n, height, width, 3)`` of random blocks, always the same.

    Blocks, because white noise looks like grey after resizing, and because they compress well.
    """
    random = np.random.default_rng(0)
    images = []
    for i in range(count):
        side = max(1, min(height, width) // (2, 4, 8, 16)[i % 4])
        grid = (-(-height // side), -(-width // side), 3)
        blocks = random.integers(0, 256, grid, dtype=np.uint8)
        image = blocks.repeat(side, axis=0).repeat(side, axis=1)
        images.append(image[:height, :width])
    return np.stack(images)
