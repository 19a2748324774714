"""Size, latency and memory of exported networks, measured by the device runtime.

ResNet-32 at 32 pixels and ResNet-18 at 224, fp32 and int8: the file, the peak of the runtime's
process (anonymous and file-backed), its prediction, and what happens under limits around the
need. The networks are trained for one epoch on toy images: memory and speed do not depend on
the weights, accuracy does and is not reported::

    python tests/benchmarks/device_footprint.py --out docs/results/device-footprint.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

import toys
from quick_protocol import hardware

import edgecil

NETS = {"resnet32": 32, "resnet18": 224}
LIMITS_MB = (400, 120, 100, 80, 70, 60, 50)


def folder(root: Path, size: int) -> Path:
    """Write four classes of ten images of ``size`` pixels."""
    for label in range(4):
        place = root / f"class-{label}"
        place.mkdir(parents=True)
        for number, pixels in enumerate(toys.pixels_of(label, 10)):
            image = Image.fromarray(np.asarray(pixels)).resize((size, size))
            image.save(place / f"{number}.png")
    return root


def on_device(bundle: Path, images: Path, limit_mb: int) -> dict:
    """Return what the runtime answers under a limit, and its exit code."""
    command = [
        sys.executable, "-m", "edgecil_runtime", "evaluate", str(bundle), str(images),
        "--memory-limit", f"{limit_mb}MB", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    answer = json.loads(done.stdout)
    found = {"limit_mb": limit_mb, "exit_code": done.returncode}
    if not answer["ok"]:
        return found | {"message": answer["error"]["message"]}
    result = answer["result"]
    return found | {
        "peak_mb": round(result["peak_rss_bytes"] / 1e6, 1),
        "anonymous_mb": round(result["anon_bytes"] / 1e6, 1),
        "file_mb": round(result["file_bytes"] / 1e6, 1),
        "predicted_mb": round(sum(result["predicted_bytes"].values()) / 1e6, 1),
        "plan": result["plan"],
        "latency_ms_p50": round(result["latency_ms"]["p50"], 2),
    }


def measure(arch: str, size: int, scratch: Path) -> list[dict]:
    """Return one row for each precision of a network."""
    images = folder(scratch / "images", size)
    workspace = scratch / "ws"
    edgecil.learn(
        images, method="finetune", workspace=workspace, arch=arch, image_size=size, epochs=1,
        batch_size=8,
    )  # fmt: skip
    rows = []
    for precision in ("fp32", "int8"):
        report = edgecil.export(
            workspace=workspace, output=scratch, name=precision, precision=precision
        )
        rows.append({
            "net": arch, "size": size, "precision": precision,
            "file_bytes": report.file_bytes["model.onnx"],
            "runs": [on_device(report.path, images, limit) for limit in LIMITS_MB],
        })  # fmt: skip
    return rows


def main() -> None:
    """Measure all networks and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    for arch, size in NETS.items():
        with tempfile.TemporaryDirectory() as scratch:
            rows += measure(arch, size, Path(scratch))
    result = {
        "benchmark": "device footprint: edgecil-device evaluate, one thread, 40 images",
        "rows": rows, "hardware": hardware(), "onnxruntime": onnxruntime.__version__,
        "edgecil": edgecil.__version__,
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
