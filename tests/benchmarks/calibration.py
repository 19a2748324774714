"""Int8 calibrated without data against int8 calibrated with it, on one and the same model.

A ResNet-32 learns fifty classes of CIFAR-100 (finetune) and fifty more (``--method``). It is
exported as fp32 and as int8, with ranges from 128 training images, from the recording made while
learning, from images made from the model itself, and from random blocks. All 10,000 test images
then go through every bundle: how often does int8 predict what fp32 predicts, how much accuracy is
lost, and where two calibrations differ, which one is right about fp32? ::

    EDGECIL_TEST_DATA=.../cifar100 python tests/benchmarks/calibration.py --work /tmp/calibration
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from cifar import all_classes, unpack
from numpy.typing import NDArray
from PIL import Image

from edgecil import api
from edgecil.bench.layouts import link
from edgecil.bench.layouts.folders import class_folders
from edgecil.bench.runner import commit, hardware, versions
from edgecil.data.orders import numpy_order
from edgecil.exporting.sessions import noise_images, open_session, scores

OLD, IMAGES, SEED = 50, 128, 0
SOURCES = ("images", "recorded", "synthetic", "noise")


def learn(work: Path, method: str, epochs: int) -> list[str]:
    """Teach the workspace its two increments, unless it knows them; return the classes."""
    listing = class_folders(work)
    names = [sorted(listing.classes)[i] for i in numpy_order(100)]
    workspace = work / "workspace"
    for number, how in enumerate(("finetune", method), start=1):
        classes = tuple(names[(number - 1) * OLD : number * OLD])
        if (workspace / "versions" / str(number)).exists():
            continue
        folder = link(listing.train, classes, work / f"increment-{number}")
        api.learn(
            folder, method=how, workspace=workspace, epochs=epochs, class_order=classes, seed=SEED,
        )  # fmt: skip
    images = work / "images"  # evenly from all classes, as a careful user would pick them
    images.mkdir(exist_ok=True)
    for n in range(IMAGES):
        source = sorted(listing.train[names[n % len(names)]])[n]
        target = images / f"{n:03d}{source.suffix}"
        target.write_bytes(source.read_bytes())
    noise = work / "noise"
    noise.mkdir(exist_ok=True)
    for n, pixels in enumerate(noise_images(IMAGES, 32, 32)):
        Image.fromarray(pixels).save(noise / f"{n:03d}.png")
    return names


MEASURED = """
import atexit, sys
from edgecil.memory.process import peak_memory
from edgecil_cli.app import main

atexit.register(lambda: print(peak_memory()["peak_rss_bytes"], file=sys.stderr))
sys.exit(main())
"""
"""The command, which says at its end how much memory it took at most."""


def export(work: Path, name: str, *options: str) -> tuple[Path, float, int]:
    """Return a bundle, the seconds and the peak resident bytes of the command that wrote it."""
    call = [
        sys.executable, "-c", MEASURED, "export", "--workspace", str(work / "workspace"),
        "--name", name, "-o", str(work / "bundles"), "--force", "-q", "--max-drop", "100",
        "--min-agreement", "0", *options,
    ]  # fmt: skip
    start = time.monotonic()
    done = subprocess.run(call, stderr=subprocess.PIPE, text=True, check=False)
    seconds = time.monotonic() - start
    if done.returncode:
        raise SystemExit(f"export {' '.join(options)}: exit {done.returncode}\n{done.stderr}")
    return work / "bundles" / f"{name}-v2", seconds, int(done.stderr.split()[-1])


def tests(work: Path, names: list[str]) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    """Return all test images, and their labels in order of introduction."""
    listing = class_folders(work)
    files = [(path, n) for n, name in enumerate(names) for path in sorted(listing.test[name])]
    return (
        [np.asarray(Image.open(path).convert("RGB")) for path, _ in files],
        np.array([n for _, n in files]),
    )


def main() -> None:
    """Measure, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of data and bundles")
    parser.add_argument("--out", type=Path, default=Path("docs/results/calibration.json"))
    parser.add_argument("--method", default="lwm", help="how the second fifty are learned")
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    work: Path = given.work
    if not (work / "train").exists():
        archives = Path(os.environ["EDGECIL_TEST_DATA"])
        unpack(archives, work, all_classes(archives))
    names = learn(work, given.method, given.epochs)
    images, labels = tests(work, names)
    where = {"images": str(work / "images"), "noise": str(work / "noise")}

    def predicted(bundle: Path) -> NDArray[np.int64]:
        return scores(open_session(onnx.load(bundle / "model.onnx")), images).argmax(axis=1)

    wide_bundle, *_ = export(work, "fp32", "--precision", "fp32")
    wide = predicted(wide_bundle)
    groups = {"old": labels < OLD, "new": labels >= OLD, "all": labels >= 0}

    def accuracy(found: NDArray[np.int64]) -> dict[str, float]:
        return {g: float((found == labels)[m].mean()) for g, m in groups.items()}

    rows: dict[str, Any] = {}
    same: dict[str, NDArray[np.bool_]] = {}
    for source in SOURCES:
        bundle, seconds, peak = export(
            work, f"int8-{source}", "--calibrate", where.get(source, source)
        )
        found = predicted(bundle)
        same[source] = found == wide
        rows[source] = {
            "agreement": float(same[source].mean()),
            "accuracy": accuracy(found),
            "seconds": seconds,
            "peak_rss_bytes": peak,
        }
        print(source, json.dumps(rows[source]), flush=True)
    for source in SOURCES[1:]:
        # Test images on which exactly one of the two calibrations keeps fp32's prediction.
        rows[source]["only_images_agree"] = int((same["images"] & ~same[source]).sum())
        rows[source]["only_this_agrees"] = int((same[source] & ~same["images"]).sum())
    result = {
        "test_images": len(images), "calibration_images": IMAGES, "method": given.method,
        "epochs": given.epochs, "seed": SEED, "fp32_accuracy": accuracy(wide), "int8": rows,
        "hardware": hardware(), "commit": commit(),
        "versions": versions() | {"onnxruntime": onnxruntime.__version__},
    }  # fmt: skip
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
