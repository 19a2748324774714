"""The quick protocol: 25 classes of CIFAR-100 in five increments of five, ResNet-32, 20 epochs.

Class order of numpy's seed 1993, test images of all classes seen so far. One JSON file per run
is written as soon as it ends; a run whose file is there is not repeated::

    EDGECIL_TEST_DATA=.../cifar100 python tests/benchmarks/quick_protocol.py \
        --methods finetune,lwf-mc,lwm --set lwm:gamma=0.1 --seeds 0 --out docs/results/quick
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch

import edgecil
from edgecil import metrics
from edgecil.data.orders import numpy_order

CLASSES, SIZES = 25, (5, 5, 5, 5, 5)


def unpack(archives: Path, target: Path, classes: list[str]) -> None:
    """Unpack the images of ``classes`` into ``target/train`` and ``target/test``."""
    wanted = {f"{split}/{name}" for split in ("train", "test") for name in classes}
    for name in ("train-a", "train-b", "test"):
        with zipfile.ZipFile(archives / f"cifar100-{name}.zip") as archive:
            members = [m for m in archive.namelist() if m.rpartition("/")[0] in wanted]
            archive.extractall(target, members)


def class_order(archives: Path) -> list[str]:
    """Return the first 25 classes in the order of numpy's seed 1993."""
    with zipfile.ZipFile(archives / "cifar100-test.zip") as archive:
        names = sorted({m.split("/")[1] for m in archive.namelist() if m.count("/") == 2})
    return [names[i] for i in numpy_order(100)[:CLASSES]]


def folders(images: Path, order: list[str], target: Path) -> list[Path]:
    """Return one folder per increment, of links to its class folders."""
    made, start = [], 0
    for number, size in enumerate(SIZES, start=1):
        folder = target / f"increment-{number}"
        folder.mkdir(parents=True)
        for name in order[start : start + size]:
            (folder / name).symlink_to(images / "train" / name)
        made.append(folder)
        start += size
    return made


def hardware() -> str:
    """Return processor, usable cores and accelerator in words."""
    text = Path("/proc/cpuinfo").read_text()
    model = next((x.split(": ")[1] for x in text.splitlines() if x.startswith("model name")), "?")
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {len(os.sched_getaffinity(0))} cores{gpu}"


def run(
    method: str, options: dict[str, str], seed: int, archives: Path, epochs: int, lr: float | None
) -> dict:
    """Return the result of one run as a JSON object."""
    order = class_order(archives)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        unpack(archives, place / "images", order)
        rows, rates, start = [], [], time.perf_counter()
        for folder in folders(place / "images", order, place):
            result = edgecil.learn(
                folder, method=method, options=options, workspace=place / "ws", seed=seed,
                epochs=epochs, class_order=tuple(order[len(rows) * 5 : len(rows) * 5 + 5]),
                test_data=place / "images" / "test", arch="resnet32" if not rows else "auto",
                record_ranges=False, lr=lr,
            )  # fmt: skip
            rows.append(result.evaluation)
            rates.append(result.manifest.training["images_per_second"])
            print(method, options, seed, [round(r.top1, 4) for r in rows], flush=True)
        seconds = time.perf_counter() - start
    matrix = np.full((len(SIZES), len(SIZES)), np.nan)
    for t, row in enumerate(rows):
        matrix[t, : t + 1] = row.by_increment()
    accuracy = [row.top1 for row in rows]
    training = result.manifest.training
    return {
        "protocol": f"quick: CIFAR-100, 25 classes, 5 x 5, resnet32, {epochs} epochs, order 1993",
        "method": method, "options": options, "seed": seed, "lr": training["optim"]["lr"],
        "accuracy": accuracy,
        "average": metrics.average(accuracy), "final": accuracy[-1],
        "forgetting": metrics.forgetting(matrix), "by_increment": matrix[-1].tolist(),
        "kept_bytes": result.manifest.kept["bytes"], "seconds": seconds,
        "images_per_second": float(np.mean(rates)), "precision": training["precision"],
        "threads": training["threads"], "hardware": hardware(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "edgecil": edgecil.__version__},
        "commit": subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True,
                                 text=True, check=False).stdout.strip(),
    }  # fmt: skip


def main() -> None:
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="finetune,lwf-mc,lwm,joint")
    parser.add_argument("--set", action="append", default=[], metavar="METHOD:NAME=VALUE")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, help="default: the method's own")
    parser.add_argument("--out", type=Path, default=Path("docs/results/quick"))
    given = parser.parse_args()
    archives = Path(os.environ["EDGECIL_TEST_DATA"])
    given.out.mkdir(parents=True, exist_ok=True)
    for seed in map(int, given.seeds.split(",")):
        for method in given.methods.split(","):
            pairs = [s.split(":", 1)[1].split("=") for s in given.set if s.startswith(f"{method}:")]
            options = dict(pairs)
            label = "-".join([method, *(f"{n}={v}" for n, v in options.items()), f"seed{seed}"])
            path = given.out / f"{label}.json"
            if not path.exists():
                result = run(method, options, seed, archives, given.epochs, given.lr)
                path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
