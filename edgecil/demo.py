"""The whole path on images that come with scikit-learn: learn, report, export, run, plot.

Handwritten digits arrive as folders, two classes at a time. LwM learns five increments beside
three comparisons; the result is exported as int8 and evaluated by the device runtime in a
process without torch, under a memory limit.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgecil import api
from edgecil.bench.plots import learning_curves
from edgecil.engine.events import Listener, Note, Stage, ignore
from edgecil.errors import DependencyMissing, EdgecilError
from edgecil.exporting.report import ExportReport
from edgecil.reporting import MemoryReport

METHODS = ("lwm", "lwf-mc", "finetune", "joint")
ARCH, EPOCHS, SIDE = "resnet8", 12, 32
MEMORY_LIMIT = "80MB"
INCREMENTS = 5


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured."""

    accuracy: Mapping[str, Sequence[float]]
    """Accuracy on all digits seen so far after each increment, by method, in [0, 1]."""
    memory: MemoryReport
    export: ExportReport
    device: Mapping[str, Any]
    """What the device runtime measured: ``evaluate --json``."""
    plot: Path
    bundle: Path
    output: Path

    def to_json(self) -> dict[str, Any]:
        """Return the figures as one JSON object."""
        return {
            "accuracy": {name: list(values) for name, values in self.accuracy.items()},
            "memory": self.memory.to_json(),
            "export": self.export.to_json(),
            "device": dict(self.device),
            "plot": str(self.plot),
            "bundle": str(self.bundle),
        }


def write_digits(target: Path) -> list[Path]:
    """Write scikit-learn's digits as image folders and return one folder per increment.

    Every fifth image of a digit is a test image, in ``target/test``.

    Raises:
        DependencyMissing: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DependencyMissing(
            "the demo takes its images from scikit-learn, which is not installed",
            hint="pip install 'edgecil[demo]'",
        ) from None
    digits = load_digits()
    folders = [target / f"digits-{2 * i}-{2 * i + 1}" for i in range(INCREMENTS)]
    seen = dict.fromkeys(range(10), 0)
    for pixels, digit in zip(digits.images, digits.target.tolist(), strict=True):
        held_out = seen[digit] % 5 == 4
        folder = (target / "test" if held_out else folders[digit // 2]) / f"digit-{digit}"
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
        image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{seen[digit]:03d}.png")
        seen[digit] += 1
    return folders


def _learn_all(folders: list[Path], test: Path, output: Path, listener: Listener) -> dict[str, Any]:
    accuracy = {}
    for method in METHODS:
        values = []
        for number, folder in enumerate(folders, start=1):
            listener(Stage(f"{method}: increment {number} of {len(folders)}"))
            result = api.learn(
                folder, method=method, workspace=output / method, test_data=test, epochs=EPOCHS,
                batch_size=64, arch=ARCH if number == 1 else "auto", listener=ignore,
                record_ranges=method == METHODS[0] and number == len(folders),
            )  # fmt: skip
            assert result.evaluation is not None
            values.append(result.evaluation.top1)
        listener(Note(f"{method}: {' '.join(f'{100 * v:.1f}' for v in values)} %"))
        accuracy[method] = values
    return accuracy


def evaluate_on_device(bundle: Path, images: Path, limit: str) -> dict[str, Any]:
    """Return what the device runtime measures in a process of its own, without torch.

    Raises:
        EdgecilError: the runtime refused; its message is passed on.
    """
    command = [
        sys.executable, "-m", "edgecil_runtime", "evaluate", str(bundle), str(images),
        "--memory-limit", limit, "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise EdgecilError(f"the device runtime failed: {done.stderr.strip()}") from None
    if not answer["ok"]:
        error = answer["error"]
        raise EdgecilError(error["message"], hint=error["hint"])
    result: dict[str, Any] = answer["result"]
    return result


def plot(accuracy: Mapping[str, Sequence[float]], path: Path) -> Path:
    """Write the curves of accuracy after each increment as a PNG file and return its path."""
    each = 10 // INCREMENTS
    curves = {
        name: (range(each, each * len(values) + 1, each), values)
        for name, values in accuracy.items()
    }
    return learning_curves(curves, path, what="digits")


def run(output: Path, listener: Listener = ignore) -> DemoResult:
    """Return the figures of the demo after running all of it into the folder ``output``.

    An ``output`` left by an earlier demo is replaced.

    Raises:
        EdgecilError: ``output`` holds something else, or a step failed.
    """
    marker = output / "demo.json"
    if output.exists() and any(output.iterdir()) and not marker.exists():
        raise EdgecilError(f"{output} holds other files", hint="edgecil demo -o another-folder")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    marker.write_text("{}\n")
    listener(Stage("writing the digits as image folders"))
    folders = write_digits(output / "images")
    test = output / "images" / "test"
    accuracy = _learn_all(folders, test, output, listener)
    workspace = output / METHODS[0]
    listener(Stage("exporting int8 and checking it"))
    report = api.export(workspace=workspace, output=output, name="digits")
    listener(Stage(f"evaluating on the device runtime under {MEMORY_LIMIT}"))
    device = evaluate_on_device(report.path, test, MEMORY_LIMIT)
    result = DemoResult(
        accuracy, api.report_memory(workspace=workspace), report, device,
        plot(accuracy, output / "accuracy.png"), report.path, output,
    )  # fmt: skip
    marker.write_text(json.dumps(result.to_json(), indent=1) + "\n")
    return result
