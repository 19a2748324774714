"""The main path on real photographs; needs EDGECIL_TEST_DATA with the CIFAR-100 zips."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from edgecil import api

DATA = Path(os.environ.get("EDGECIL_TEST_DATA", ""))
BASE, NEW = ("orange", "sea", "wardrobe"), ("apple", "plain", "road")
TRAIN, TEST = 40, 20

pytestmark = pytest.mark.skipif(
    not os.environ.get("EDGECIL_TEST_DATA"), reason="EDGECIL_TEST_DATA is not set"
)


def unpack(archives, classes, count, to):
    """Write the first ``count`` images of each class as class folders below ``to``."""
    for name in archives:
        with zipfile.ZipFile(DATA / name) as archive:
            for member in archive.namelist():
                path = Path(member)
                folder = to / path.parent.name
                if path.parent.name not in classes or path.suffix != ".webp":
                    continue
                folder.mkdir(parents=True, exist_ok=True)
                if len(list(folder.iterdir())) < count:
                    (folder / path.name).write_bytes(archive.read(member))
    return to


def test_two_increments_of_lwm_evaluation_and_prediction(tmp_path):
    train = ["cifar100-train-a.zip", "cifar100-train-b.zip"]
    base = unpack(train, BASE, TRAIN, tmp_path / "base")
    new = unpack(train, NEW, TRAIN, tmp_path / "new")
    tests = unpack(["cifar100-test.zip"], BASE + NEW, TEST, tmp_path / "tests")
    assert len(list(tests.glob("*/*.webp"))) == 6 * TEST
    root = tmp_path / ".edgecil"
    settings = {
        "arch": "resnet8", "batch_size": 24, "precision": "float32", "record_ranges": False,
        "test_data": tests,
    }  # fmt: skip
    first = api.learn(base, method="lwm", workspace=root, epochs=15, **settings)
    assert first.evaluation.n == 3 * TEST
    # Chance is a third; five standard errors above it are 0.64.
    assert first.evaluation.top1 > 0.64
    second = api.learn(new, workspace=root, epochs=8, **settings)
    assert second.manifest.names == [*BASE, *NEW]
    assert second.manifest.kept["bytes"] == 0
    evaluation = api.evaluate(tests, workspace=root)
    assert evaluation.n == 6 * TEST
    assert evaluation.counts.tolist() == second.evaluation.counts.tolist()
    assert evaluation.new > 1 / 4
    # A sixth is chance: the base classes are not forgotten, without an old image.
    assert evaluation.old > 1 / 6
    paths = sorted(tests.glob("*/*.webp"))
    right = sum(p.label == p.path.parent.name for p in api.predict(paths, workspace=root))
    assert right == round(evaluation.top1 * len(paths))
