"""Test the device runtime with several releases of onnxruntime: ``make test-ort``.

    PYTHONPATH=tests python -m onnxruntime_matrix.run 1.16.3 1.23.2 newest

Bundles are exported here, by this Python; every release gets a virtual environment of its own
under ``build/onnxruntime/``, with numpy, onnxruntime without its dependencies, and Pillow, and
runs ``test_device_runtime.py`` on them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from exporting.pictures_of_classes import CLASSES, LABELS, SMALL, normalised, pictures
from torch.nn import functional as F

from edgecil.exporting.versions import export_version
from edgecil.nets.build import build
from edgecil.nets.net import Net, NetSpec
from edgecil.nets.rules import ArgmaxRule
from edgecil_runtime import Classifier

ROOT = Path(__file__).parents[2]
BUNDLES = {
    "int8": {"precision": "int8"},
    "fp32": {"precision": "fp32"},
    "fixed": {"precision": "int8", "fixed_input": True},
}


def trained() -> Net:
    """Return a ResNet-8 after a few steps, so that its scores differ between images."""
    torch.manual_seed(0)
    net = build(NetSpec("resnet8"), CLASSES).train()
    data = pictures(192, SMALL.resize, seed=1)
    inputs = normalised(data.pixels, SMALL)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for rows in torch.arange(192).repeat(4).split(48):
        loss = F.cross_entropy(net(inputs[rows]).logits, data.labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


def export_all(folder: Path) -> None:
    """Write the bundles, and the scores that this onnxruntime gives for a few images."""
    net, images = trained(), pictures(64, SMALL.resize, seed=2).pixels.numpy()
    for name, choices in BUNDLES.items():
        report = export_version(
            net, ArgmaxRule(CLASSES), SMALL, LABELS, name=name, version=1, parent=None,
            method="finetune", output=folder, calibration=images, min_agreement=0.5, **choices,
        )  # fmt: skip
        classifier = Classifier(report.path)
        probes = pictures(12, SMALL.resize + 9, seed=3).pixels.numpy()
        scores = np.stack([classifier.scores(probe) for probe in probes])
        np.savez(folder / f"{name}.npz", probes=probes, scores=scores)


def environment_of(version: str) -> Path:
    """Return the Python of a virtual environment with that onnxruntime, made when missing."""
    folder = ROOT / "build" / "onnxruntime" / version
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--upgrade"]
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    exact = "onnxruntime" if version == "newest" else f"onnxruntime=={version}"
    old = version != "newest" and tuple(map(int, version.split(".")[:2])) < (1, 19)
    subprocess.run([*pip, "--no-deps", exact], check=True)
    subprocess.run([*pip, "numpy<2" if old else "numpy", "pillow", "pytest"], check=True)
    return python


def main() -> int:
    """Run the tests with every release and return how many failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("versions", nargs="+", metavar="VERSION")
    failed = []
    versions = parser.parse_args().versions
    with tempfile.TemporaryDirectory(prefix="edgecil-bundles-") as folder:
        export_all(Path(folder))
        for version in versions:
            python = environment_of(version)
            print(f"onnxruntime {version}", flush=True)
            done = subprocess.run(
                [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__).parent],
                cwd=ROOT, env={**os.environ, "EDGECIL_MATRIX_BUNDLES": folder}, check=False,
            )  # fmt: skip
            failed += [version] if done.returncode else []
    print(f"failed with onnxruntime {', '.join(failed)}" if failed else "all passed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
