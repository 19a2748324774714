"""The child process that measures activation ranges: numpy and onnxruntime, no torch.

It reads one JSON job from stdin, feeds the images through the graph a few at a time, keeps
nothing but the extremes of each, and writes one JSON answer to stdout::

    job:    {"model": FILE, "tensors": T, "pixels": FILE.npy | null, "files": [PATH..] | null,
             "resize": R, "size": S, "max_pixels": P, "batch": B, "threads": K}
    answer: {"low": [T numbers], "high": [..], "images": N, "peak_rss_bytes": .., "modules": [..]}
            or {"error": TEXT}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

BEYOND = 0.1
"""Share of the images whose extremes a range leaves out at either end.

The largest value of all belongs to one image, and synthetic images have larger ones than real
ones: a range that holds it rounds everything else more coarsely.
"""


def _images(job: dict[str, Any]) -> Iterator[Any]:
    # Squares (R, R, 3), one at a time.
    if job["pixels"] is not None:
        yield from np.load(job["pixels"], mmap_mode="r")
        return
    from edgecil_runtime.images import fit_square, read_image

    for path in job["files"]:
        yield fit_square(read_image(path, job["max_pixels"]), job["resize"])


def _batches(job: dict[str, Any]) -> Iterator[Any]:
    # Centre crops (n, S, S, 3), n up to B.
    size, inset = job["size"], (job["resize"] - job["size"]) // 2
    waiting: list[Any] = []
    for image in _images(job):
        waiting.append(image[inset : inset + size, inset : inset + size])
        if len(waiting) == job["batch"]:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)


def _session(job: dict[str, Any]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.log_severity_level = 3
    # Higher levels copy every weight into a blocked layout: twice the memory for a third of
    # the time.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a job: per tensor the range of most images."""
    from edgecil_runtime.memory import usage

    session = _session(job)
    lows, highs = [], []
    for batch in _batches(job):
        low, high = session.run(["low", "high"], {"image": batch})
        lows.append(low.reshape(job["tensors"], -1))
        highs.append(high.reshape(job["tensors"], -1))
    every_low, every_high = np.concatenate(lows, axis=1), np.concatenate(highs, axis=1)
    # Not ru_maxrss: that survives exec and so begins with the size of the parent.
    used = usage()
    return {
        "low": np.quantile(every_low, BEYOND, axis=1).tolist(),
        "high": np.quantile(every_high, 1 - BEYOND, axis=1).tolist(),
        "images": every_low.shape[1],
        "peak_rss_bytes": used.peak if used else 0,
        "modules": sorted(name for name in sys.modules if "." not in name),
    }


def main() -> int:
    """Answer the job on stdin; return the exit status."""
    from edgecil_runtime.errors import RuntimeFault

    try:
        answer = measure(json.load(sys.stdin))
    except RuntimeFault as error:
        answer = {"error": error.message}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
