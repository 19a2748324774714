"""One process of ``device_limits.py``: does one thing and prints one JSON object about it.

It imports nothing but the standard library before it must, so that its memory is that of what
it measures.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

SETTLING = 10  # predictions before the latency counts


def plain(model: str, folder: str) -> dict[str, Any]:
    """Evaluate a folder as most programs do: default session on the portable file."""
    import numpy as np
    import onnxruntime
    from PIL import Image

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    seconds, first = [], 0.0
    for path in sorted(Path(folder).rglob("*.png")):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        start = time.perf_counter()
        session.run(None, {"image": pixels[np.newaxis]})
        seconds.append(time.perf_counter() - start)
        first = first or time.time()
    return {"first": first, **latency(seconds), **memory()}


def runtime(bundle: str, folder: str, limit: str) -> dict[str, Any]:
    """Evaluate a folder as ``edgecil-device evaluate`` does."""
    from edgecil_runtime.limits import of_process
    from edgecil_runtime.own_process import OwnProcess, refuse_hopeless

    given, first = of_process(limit), 0.0
    refuse_hopeless(bundle, given)
    process = OwnProcess(given)
    process.prepare()
    from edgecil_runtime.classifier import Classifier

    classifier = Classifier(bundle, given.bytes if given else None, process=process)

    def mark(*_: int) -> None:
        nonlocal first
        first = first or time.time()

    found = classifier.evaluate(folder, mark)
    need = classifier.need.total
    return {
        "first": first, "plan": classifier.plan, "predicted_mb": round(need / 1e6, 1),
        **latency([ms / 1e3 for ms in found.milliseconds.tolist()]), **memory(),
    }  # fmt: skip


def first(kind: str, path: str, side: str) -> dict[str, Any]:
    """Make one prediction of an array: of a plain session, in-process, or isolated."""
    import numpy as np

    pixels = np.zeros((int(side), int(side), 3), np.uint8)
    if kind == "plain":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        session.run(None, {"image": pixels[np.newaxis]})
        return {"first": time.time()}
    from edgecil_runtime import Classifier

    with Classifier(path, isolate=kind == "isolated") as classifier:
        classifier.predict(pixels)
        return {"first": time.time()}


def overhead(bundle: str, side: str, rounds: str) -> dict[str, Any]:
    """Time ``predict`` and a bare ``session.run`` of the same session in turns."""
    import numpy as np

    from edgecil_runtime import Classifier

    classifier = Classifier(bundle)
    session: Any = vars(classifier)["_model"]._session
    pixels = np.zeros((int(side), int(side), 3), np.uint8)
    feed = {"image": pixels[np.newaxis]}
    bare, whole = [], []
    for _ in range(int(rounds)):
        for times, work in ((bare, lambda: session.run(["scores"], feed)),
                            (whole, lambda: classifier.predict(pixels))):  # fmt: skip
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    a, b = sorted(bare)[len(bare) // 2], sorted(whole)[len(whole) // 2]
    return {"bare_ms": 1e3 * a, "predict_ms": 1e3 * b, "added_us": 1e6 * (b - a),
            "added_percent": 100 * (b - a) / a}  # fmt: skip


def growth(bundle: str, side: str, count: str) -> dict[str, Any]:
    """Predict many times and compare the memory after the first 100 with that at the end."""
    import numpy as np

    from edgecil_runtime import Classifier
    from edgecil_runtime.memory import usage

    classifier = Classifier(bundle)
    pixels = np.zeros((int(side), int(side), 3), np.uint8)
    early = 0
    for done in range(int(count)):
        if done == 100:
            early = getattr(usage(), "resident", 0)
        classifier.predict(pixels)
    return {"predictions": int(count), "after_100_mb": early / 1e6,
            "at_the_end_mb": getattr(usage(), "resident", 0) / 1e6}  # fmt: skip


def latency(seconds: list[float]) -> dict[str, Any]:
    """Return mean and median of the settled predictions, and the slowest, in milliseconds."""
    settled = sorted(seconds[SETTLING:])
    return {
        "images": len(seconds),
        "mean_ms": 1e3 * sum(settled) / len(settled),
        "p50_ms": 1e3 * settled[len(settled) // 2],
        "all_ms": 1e3 * sum(seconds) / len(seconds),
    }


def memory() -> dict[str, Any]:
    """Return peak, anonymous and file-backed memory in MB of 10^6 bytes, and major faults."""
    fields = dict(x.split(":", 1) for x in Path("/proc/self/status").read_text().splitlines())
    faults = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[9])
    sizes = {"peak_mb": "VmHWM", "anonymous_mb": "RssAnon", "file_mb": "RssFile"}
    found = {name: int(fields[key].split()[0]) * 1024 / 1e6 for name, key in sizes.items()}
    return {**found, "major_faults": faults}


if __name__ == "__main__":
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    jobs = {job.__name__: job for job in (plain, runtime, first, overhead, growth)}
    try:
        print(json.dumps(jobs[sys.argv[1]](*sys.argv[2:])))
    except Exception as error:
        print(json.dumps({"error": str(error), "hint": getattr(error, "hint", None)}))
        sys.exit(getattr(error, "exit_code", 70))
