"""BiC's second stage: the confusion matrix before and after the bias is corrected.

Learns increments of CIFAR-100 with ``bic`` and evaluates each network twice on all test images so
far: by the largest logit, and by the corrected logits. Without a bias, the share of predictions
that fall on new classes is the share of images that are of new classes::

    python tests/benchmarks/bic_bias.py .../cifar100 --out docs/results/bic-bias.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from cifar import unpack

import edgecil
from edgecil.bench.runner import commit, hardware, versions
from edgecil.data.decode import load
from edgecil.data.orders import numpy_order
from edgecil.data.source import align, scan
from edgecil.engine.compute import inference_compute
from edgecil.evaluation import Evaluation, evaluate_images
from edgecil.model import Model
from edgecil.nets.rules import ArgmaxRule, CorrectedRule
from edgecil.versions import load_version
from edgecil.workspace import Workspace


def folders(archives: Path, target: Path, increments: int, classes: int) -> list[Path]:
    """Return one folder of training images per increment; ``target/test`` has the test images."""
    with zipfile.ZipFile(archives / "cifar100-test.zip") as archive:
        names = sorted({m.split("/")[1] for m in archive.namelist() if m.count("/") == 2})
    chosen = [names[i] for i in numpy_order(100)[: increments * classes]]
    unpack(archives, target, chosen)
    made = [target / f"increment-{n}" for n in range(1, increments + 1)]
    for number, name in enumerate(chosen):
        folder = made[number // classes]
        folder.mkdir(exist_ok=True)
        (target / "train" / name).rename(folder / name)
    return made


def figures(found: Evaluation) -> dict[str, Any]:
    """Return what one rule makes of the test images; accuracies and shares in [0, 1]."""
    old = len(found.labels) - found.groups[-1]
    predicted = found.counts.sum(axis=0)
    return {
        "top1": round(found.top1, 4), "old": round(found.old, 4), "new": round(found.new, 4),
        "share_predicted_new": round(float(predicted[old:].sum() / predicted.sum()), 4),
        "confusion": found.counts.tolist(),
    }  # fmt: skip


def judged(workspace: Path, tests: Path, device: str) -> dict[str, Any]:
    """Return the figures of the current version by both rules, and the correction."""
    manifest, model = load_version(Workspace(workspace))
    assert isinstance(model.rule, CorrectedRule)
    folder = align(scan(tests), manifest.names)
    images = load(folder, manifest.input).images
    rules = {"plain": ArgmaxRule(len(manifest.names)), "corrected": model.rule}
    row: dict[str, Any] = {
        "classes": len(manifest.names), "labels": list(manifest.names),
        "share_new": round(manifest.groups[-1] / len(manifest.names), 4),
        "alpha": round(float(model.rule.scale[-1]), 4),
        "beta": round(float(model.rule.shift[-1]), 4),
    }  # fmt: skip
    for name, rule in rules.items():
        found = evaluate_images(
            Model(model.net, rule, model.kept), images, manifest.input,
            inference_compute(device), manifest.names, manifest.groups,
        )  # fmt: skip
        row[name] = figures(found)
    return row


def main() -> None:
    """Learn, and write one row per increment after the base."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the archives of CIFAR-100")
    parser.add_argument("--increments", type=int, default=3)
    parser.add_argument("--classes", type=int, default=10, help="of each increment")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--exemplars-total", type=int, default=2000)
    parser.add_argument("--arch", default="resnet32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results/bic-bias.json"))
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        made = folders(given.data, place, given.increments, given.classes)
        for number, folder in enumerate(made):
            edgecil.learn(
                folder, method="bic", workspace=place / "ws", epochs=given.epochs,
                arch=given.arch, exemplars_total=given.exemplars_total, device=given.device,
                seed=given.seed, record_ranges=False,
            )  # fmt: skip
            if number:
                rows.append(judged(place / "ws", place / "test", given.device))
                shown = {k: v for k, v in rows[-1].items() if not isinstance(v, (dict, list))}
                for rule in ("plain", "corrected"):
                    shown[rule] = {k: v for k, v in rows[-1][rule].items() if k != "confusion"}
                print(json.dumps(shown), flush=True)
    report = {
        "protocol": f"CIFAR-100, {given.increments} x {given.classes} classes of numpy's seed "
        f"1993, {given.arch}, {given.epochs} epochs, {given.exemplars_total} exemplars",
        "method": "bic", "seed": given.seed, "rows": rows, "hardware": hardware(),
        "versions": versions(),
        "commit": commit(),
    }  # fmt: skip
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
