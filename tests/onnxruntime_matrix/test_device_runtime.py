"""The device runtime with whichever onnxruntime is installed, on bundles exported elsewhere.

``run.py`` (``make test-ort``) makes the bundles and calls this with every release. Only numpy,
onnxruntime and Pillow are there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runtime.protobuf_bytes import model

from edgecil_runtime import BundleError, Classifier
from edgecil_runtime.bundle import MANIFEST, MODEL
from edgecil_runtime.compatibility import limits_of
from edgecil_runtime.hashing import sha256
from edgecil_runtime.manifest import sealed
from edgecil_runtime.slots import Slots

FOLDER = os.environ.get("EDGECIL_MATRIX_BUNDLES", "")
BUNDLES = Path(FOLDER)
DEVICES = Path(__file__).parents[2] / "devices"
NAMES = ("int8", "fp32", "fixed")
pytestmark = pytest.mark.skipif(not FOLDER, reason="needs the bundles that make test-ort exports")


def run(*words):
    """Call the command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "edgecil_runtime", *map(str, words), "--json"],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(DEVICES)},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """One folder per class with the probes that the newest network names so."""
    folder = tmp_path_factory.mktemp("images")
    known = np.load(BUNDLES / "int8.npz")
    labels = Classifier(BUNDLES / "int8-v1").labels
    for i, (probe, scores) in enumerate(zip(known["probes"], known["scores"], strict=True)):
        place = folder / labels[scores.argmax()]
        place.mkdir(exist_ok=True)
        Image.fromarray(probe).save(place / f"{i}.png")
    return folder


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_every_bundle_passes_its_selftest_and_gives_the_recorded_scores(name, threads):
    classifier = Classifier(BUNDLES / f"{name}-v1", threads=threads)
    test = classifier.selftest()
    assert test.max_difference <= test.tolerance
    known = np.load(BUNDLES / f"{name}.npz")
    found = np.stack([classifier.scores(probe) for probe in known["probes"]])
    assert np.abs(found - known["scores"]).max() <= test.tolerance
    assert (found.argmax(1) == known["scores"].argmax(1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_under_a_memory_limit(images, name):
    bundle = BUNDLES / f"{name}-v1"
    code, answer = run("evaluate", bundle, images, "--memory-limit", "150MB")
    assert code == 0, answer
    result = answer["result"]
    assert result["peak_rss_bytes"] <= 150e6 and result["n"] == 12
    assert result["top1"] == 1 or name != "int8"
    code, answer = run("evaluate", bundle, images, "--memory-limit", "20MB")
    assert code == 3 and answer["error"]["code"] == "memory_limit"


def test_the_doctor_knows_this_release():
    import onnxruntime

    code, answer = run("doctor")
    assert code == 0, answer
    found = {f["name"]: f["found"] for f in answer["result"]["findings"]}
    assert found["onnxruntime"].startswith(onnxruntime.__version__)


def test_the_table_of_limits_is_true():
    import onnxruntime
    from onnxruntime_matrix.limits import limits

    assert limits() == limits_of(onnxruntime.__version__)


def test_a_model_that_is_too_new_names_the_release_it_needs(tmp_path):
    import onnxruntime

    limits = limits_of(onnxruntime.__version__)
    bundle = shutil.copytree(BUNDLES / "fp32-v1", tmp_path / "fp32-v1")
    data = model(ir=limits.ir + 1, opset=limits.opset + 1)
    (bundle / MODEL).write_bytes(data)
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"][MODEL] = {"sha256": sha256(data).hexdigest(), "bytes": len(data)}
    manifest["requires"].update(ir=limits.ir + 1, opset=limits.opset + 1)
    (bundle / MANIFEST).write_text(json.dumps(sealed(manifest)))
    with pytest.raises(BundleError, match="cannot load the model") as caught:
        Classifier(bundle)
    assert "onnxruntime>=" in caught.value.hint or "no known onnxruntime" in caught.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_an_installed_bundle_is_baked_and_answers_the_same_in_isolation(tmp_path, name):
    code, answer = run("install", BUNDLES / f"{name}-v1", "--root", tmp_path / "root")
    assert code == 0, answer
    known = np.load(BUNDLES / f"{name}.npz")
    with Slots(tmp_path / "root").open(isolate=True, memory_limit="150MB") as classifier:
        assert classifier.not_baked is None
        found = np.stack([classifier.scores(probe) for probe in known["probes"]])
        tolerance = classifier.selftest().tolerance
    assert np.abs(found - known["scores"]).max() <= tolerance
