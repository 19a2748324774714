"""Streaming speed: images per second of training steps, images in memory and on disk in turn.

The same steps of ``finetune`` through the engine's own loop; both places take turns, so that a
drift of the machine hits both alike. Decoding is over when the clock starts::

    python tests/benchmarks/streaming_speed.py --out docs/results/streaming-speed.json

``--loader`` leaves the network out and times the batches alone. The file lies in ``--disk``; it
is in the page cache unless it is larger than memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import toys

from edgecil.bench.runner import hardware
from edgecil.data.disk import DiskPixels, PixelFile
from edgecil.data.images import ImageSet
from edgecil.data.resident import place
from edgecil.engine.compute import Compute, pick_device
from edgecil.engine.increment import begin
from edgecil.engine.loop import PhaseRun, Session
from edgecil.settings import CIFAR, IMAGENET, Augment, Optim, Training

CLASSES = 10


def in_memory(count: int, edge: int) -> ImageSet:
    """Return ``count`` images of noise."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, edge, edge, 3), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(count) % CLASSES)


def on_disk(images: ImageSet, folder: Path) -> ImageSet:
    """Return the same images in a file on the disk of ``folder``."""
    file = PixelFile(folder, len(images), images.pixels.shape[1])
    for row in range(len(images)):
        file[row] = images.pixels[row].numpy()
    return ImageSet(DiskPixels([file]), images.labels)


def prepared(images: ImageSet, given: argparse.Namespace, compute: Compute) -> PhaseRun:
    """Return the training phase of ``finetune`` on the images."""
    # The learning rate is 0: what is timed does not depend on what is learned from noise.
    training = Training(1000, given.batch, Optim(lr=0.0))
    task = toys.task("finetune", (CLASSES,), arch=given.arch, training=training)
    preprocess = IMAGENET if given.size == IMAGENET.size else CIFAR
    session = Session(compute, preprocess, Augment.for_size(given.size))
    none = ImageSet(images.pixels[:0], images.labels[:0])
    ctx, phases = begin(task, {"new": images, "kept": none}, session)
    return PhaseRun(ctx, phases[0], 0, session)


def rate(step: Callable[[int], object], first: int, given: argparse.Namespace) -> float:
    """Return the images per second of the next steps."""
    start = time.perf_counter()
    for number in range(first, first + given.steps):
        step(number)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return given.steps * given.batch / (time.perf_counter() - start)


def main() -> None:
    """Time both places in turn and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=int, choices=(CIFAR.size, IMAGENET.size), default=224)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--disk", type=Path, default=Path.cwd())
    parser.add_argument("--loader", action="store_true", help="time the batches alone")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    compute = Compute(str(pick_device(given.device)), torch.get_num_threads(), given.precision)
    edge = IMAGENET.resize if given.size == IMAGENET.size else CIFAR.resize
    images = in_memory(given.images, edge)
    sets = {
        "memory": place(images, compute.torch_device),
        "disk": on_disk(images, given.disk),
    }
    runs = {name: prepared(part, given, compute) for name, part in sets.items()}
    steps = {name: run._batch if given.loader else run.step for name, run in runs.items()}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for step in steps.values():
        step(0)
    for number in range(given.rounds):
        for name, step in steps.items():
            rates[name].append(rate(step, number * given.steps, given))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    what = "batches alone" if given.loader else f"{given.arch} ({given.precision})"
    result = {
        "benchmark": f"training images/s from memory and disk, {what}, {given.size} pixels, "
        f"batch {given.batch}, {given.images} images",
        "images_per_second": {name: round(value, 1) for name, value in medians.items()},
        "disk_relative_to_memory": round(medians["disk"] / medians["memory"], 3),
        "spread": {n: [round(min(v), 1), round(max(v), 1)] for n, v in rates.items()},
        "memory_is_on": str(sets["memory"].pixels.device), "bytes": images.pixels.nbytes,
        "threads": compute.threads, "hardware": hardware(), "load_before": round(load, 2),
        "python": platform.python_version(), "torch": torch.__version__,
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if load > 0.5:
        print(f"note: the machine was busy (load {load:.1f})", file=sys.stderr)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
