"""Herding speed: 100 classes of 500 images, 20 picks of each, 64 features.

Seconds of the clock and of the processor, which other work on the machine does not change::

    python tests/benchmarks/herding_speed.py --out docs/results/herding-speed.json
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch

from edgecil.bench.runner import commit, hardware, versions
from edgecil.rankings import herding


def seconds(classes: list[torch.Tensor], picks: int) -> tuple[float, float]:
    """Return the seconds that ranking all classes takes, of the clock and of the processor."""
    start, cpu = time.perf_counter(), time.process_time()
    for features in classes:
        herding(features, picks)
    return time.perf_counter() - start, time.process_time() - cpu


def main() -> None:
    """Time it for each number of threads and write the fastest of several rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--images", type=int, default=500, help="of each class")
    parser.add_argument("--picks", type=int, default=20)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    classes = [torch.rand(given.images, given.features) for _ in range(given.classes)]
    load, rows = os.getloadavg()[0], []
    for threads in given.threads:
        torch.set_num_threads(threads)
        timed = [seconds(classes, given.picks) for _ in range(given.rounds)]
        wall, cpu = (min(values) for values in zip(*timed, strict=True))
        rows.append({"threads": threads, "seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)})
    report = {
        "benchmark": f"herding, {given.classes} classes x {given.images} images x {given.picks} "
        f"picks, {given.features} features, fastest of {given.rounds}",
        "rows": rows, "load_before": round(load, 2), "hardware": hardware(), "commit": commit(),
        "versions": versions(),
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
