"""What M2KD keeps after each of ten increments of ten classes of CIFAR-100, on real files.

One epoch per increment is enough for bytes. Only mirroring is done to the images, so that the
teachers' answers are looked up: the fine-tuning epoch, in which the table is there, should take
the same time after ten increments as after two::

    EDGECIL_TEST_DATA=.../cifar100 python tests/benchmarks/m2kd_bytes.py
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import zipfile
from pathlib import Path

import torch

import edgecil
from edgecil.bench.runner import commit, hardware, versions
from edgecil.data.orders import numpy_order
from edgecil.engine.events import Event, PhaseStarted, Stage
from edgecil.settings import Augment

INCREMENTS, CLASSES = 10, 10


def unpack(archives: Path, target: Path, images: int) -> list[Path]:
    """Return one folder per increment with ``images`` images of each of its classes."""
    folders = [target / f"increment-{n}" for n in range(1, INCREMENTS + 1)]
    with zipfile.ZipFile(archives / "cifar100-test.zip") as archive:
        names = sorted({m.split("/")[1] for m in archive.namelist() if m.count("/") == 2})
    where = {names[i]: folders[n // CLASSES] for n, i in enumerate(numpy_order(100))}
    taken = dict.fromkeys(names, 0)
    for part in "ab":
        with zipfile.ZipFile(archives / f"cifar100-train-{part}.zip") as archive:
            for member in archive.namelist():
                name = member.split("/")[1] if member.count("/") == 2 else None
                if name and not member.endswith("/") and taken[name] < images:
                    taken[name] += 1
                    file = where[name] / name / Path(member).name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(archive.read(member))
    return folders


class Clock:
    """CPU seconds of every phase, by its name; other work on the machine does not count."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._phase, self._since = "", time.process_time()

    def __call__(self, event: Event) -> None:
        if isinstance(event, (PhaseStarted, Stage)):
            now = time.process_time()
            if self._phase:
                self.seconds[self._phase] = now - self._since
            self._phase, self._since = getattr(event, "name", ""), now


def main() -> None:
    """Learn, and write one row per increment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500, help="of each class")
    parser.add_argument("--out", type=Path, default=Path("docs/results/m2kd-bytes.json"))
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        folders = unpack(Path(os.environ["EDGECIL_TEST_DATA"]), place, given.images)
        for number, folder in enumerate(folders, start=1):
            clock = Clock()
            result = edgecil.learn(
                folder, method="m2kd", workspace=place / "ws", epochs=1, arch="resnet32",
                augment=Augment("centre"), precision="float32", record_ranges=False,
                listener=clock,
            )  # fmt: skip
            kept = result.manifest.kept
            rows.append(
                {"increment": number, "kept_bytes": kept["bytes"], "fields": kept["fields"],
                 "cpu_seconds": {name: round(s, 2) for name, s in clock.seconds.items()},
                 "training_bytes": result.manifest.training["memory_bytes"]}
            )  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    report = {
        "protocol": f"CIFAR-100, {INCREMENTS} x {CLASSES} classes, {given.images} images of each, "
        "resnet32, 1 epoch and 1 of fine-tuning, mirrored only",
        "method": "m2kd", "rows": rows, "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": commit(),
    }  # fmt: skip
    given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
