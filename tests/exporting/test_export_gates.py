"""Writing a bundle, and the gates that keep a wrong one from being written."""

from __future__ import annotations

import importlib.util
import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exporting.pictures_of_classes import LABELS, SMALL, pictures
from onnx import ModelProto

import edgecil.exporting
from edgecil.data.images import ImageSet
from edgecil.engine.events import Event, Note, Stage
from edgecil.errors import (
    BudgetError,
    DataError,
    DependencyMissing,
    EdgecilError,
    UsageError,
    VerificationError,
)
from edgecil.exporting import targets, verify, writing
from edgecil.exporting import versions as export_module
from edgecil.exporting.calibrate import calibrate
from edgecil.exporting.report import ExportReport
from edgecil.exporting.sessions import open_session, scores
from edgecil.exporting.synthetic import Synthetic, batch_for
from edgecil.exporting.verify import check_accuracy, check_agreement, check_parity
from edgecil.exporting.versions import export_version
from edgecil.nets.net import Net
from edgecil.nets.rules import ArgmaxRule
from edgecil.synthesis.dreams import synthesise
from edgecil_runtime import bundle
from edgecil_runtime.bundle import open_bundle, read_selftest


@pytest.fixture(scope="module")
def ranges(core: ModelProto, calibration_pixels: np.ndarray) -> Any:
    return dict(calibrate(core, SMALL, calibration_pixels).ranges)


@pytest.fixture
def export(
    net: Net, rule: ArgmaxRule, core: ModelProto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Any:
    """``export_version`` of the shared network; the exporter itself has its own tests."""
    monkeypatch.setattr(export_module, "core_graph", lambda *_: core)

    def run(**changes: Any) -> ExportReport:
        settings: dict[str, Any] = {
            "labels": LABELS,
            "name": "birds",
            "version": 2,
            "parent": 1,
            "method": "lwm",
            "output": tmp_path,
        }
        settings.update(changes)
        return export_version(net, rule, SMALL, **settings)

    return run


def test_bundle_opens_and_passes_its_own_test(export: Any, ranges: Any) -> None:
    test = pictures(60, SMALL.resize, seed=11)
    report = export(ranges=ranges, test=test)
    opened = open_bundle(report.path)
    manifest = opened.manifest
    assert [tuple(label) for label in manifest.labels] == list(LABELS)
    assert (manifest.version, manifest.parent, manifest.precision) == (2, 1, "int8")
    assert manifest.requires.ir == 8 and manifest.requires.opset == 18
    assert manifest.calibration == {"source": "recorded"}
    assert manifest.measured["parity"]["max_abs_diff"] < 1e-3
    assert 20e6 < manifest.measured["peak_rss_bytes"] < 150e6
    assert 5e6 < manifest.measured["anon_bytes"] < manifest.measured["peak_rss_bytes"]
    assert manifest.memory.weights_bytes > manifest.memory.activation_bytes > 0
    model = onnx.load(opened.model_path)
    properties = {p.key: p.value for p in model.metadata_props}
    assert json.loads(properties["labels"])[5] == {"name": LABELS[5][0], "increment": 2}
    assert json.loads(properties["preprocess"]) == json.loads(json.dumps(SMALL.to_json()))
    golden = read_selftest(opened)
    found = scores(open_session(model), golden.images)
    assert np.abs(found - golden.scores).max() <= golden.tolerance
    assert np.ptp(golden.scores, axis=0).max() > golden.tolerance, "a test that cannot fail"


def test_report_has_accuracy_of_old_and_new_classes(export: Any, ranges: Any) -> None:
    test = pictures(60, SMALL.resize, seed=11)
    report = export(ranges=ranges, test=test)
    assert report.agreement.basis == "real" and report.agreement.images == 60
    assert {name: group.images for name, group in report.accuracy.items()} == {
        "old": 40,
        "new": 20,
        "all": 60,
    }
    graph = open_session(onnx.load(report.path / "model.onnx"))
    right = scores(graph, test.pixels.numpy()).argmax(1) == test.labels.numpy()
    assert report.accuracy["all"].shipped == pytest.approx(right.mean())
    answer = json.loads(json.dumps(report.to_json()))
    assert answer["accuracy"]["old"]["drop_points"] == pytest.approx(report.accuracy["old"].drop)
    assert answer["file_bytes"]["model.onnx"] == (report.path / "model.onnx").stat().st_size


def test_without_data_nothing_is_claimed(export: Any, ranges: Any) -> None:
    report = export(ranges=ranges)
    assert report.accuracy is None and report.to_json()["accuracy"] == "not measured"
    assert report.parity.basis == report.agreement.basis == "noise"


def test_calibration_images_and_fp32_and_fixed_input(
    export: Any, calibration_pixels: np.ndarray, tmp_path: Path
) -> None:
    report = export(calibration=calibration_pixels, fixed_input=True)
    assert report.calibration["source"] == "images" and report.calibration["images"] == 48
    assert report.agreement.basis == "real"
    assert onnx.load(report.path / "model.onnx").graph.input[0].type.tensor_type.shape.dim[1]
    wide = export(precision="fp32", output=tmp_path / "wide")
    assert wide.agreement is None and wide.calibration == {"source": "none"}
    assert open_bundle(wide.path).manifest.precision == "fp32"
    assert wide.file_bytes["model.onnx"] > 2 * report.file_bytes["model.onnx"]


def test_synthetic_images_calibrate_where_there_are_none(export: Any, tmp_path: Path) -> None:
    test = pictures(60, SMALL.resize, seed=11)
    said: list[Any] = []
    settings = {"calibration": Synthetic(images=40, steps=30), "listener": said.append}
    report = export(**settings)
    assert report.calibration["source"] == "synthetic" and report.calibration["images"] == 40
    assert report.agreement.basis == "synthetic" and report.agreement.images == 40
    assert report.seconds["synthesise"] > 0
    assert {e.text for e in said if isinstance(e, Stage)} == {"making synthetic images"}
    assert said[-1] == Stage("making synthetic images", 30, 30)
    gated = export(**settings, test=test, output=tmp_path / "gated")
    assert gated.accuracy["all"].drop <= 1.0
    files = [r.path / "model.onnx" for r in (report, gated)]
    assert files[0].read_bytes() == files[1].read_bytes(), "made again, they are the same images"


def test_synthetic_images_are_not_made_in_vain(export: Any, tmp_path: Path) -> None:
    said: list[Event] = []
    wide = export(precision="fp32", calibration=Synthetic(), listener=said.append)
    assert "synthesise" not in wide.seconds
    assert Note("fp32 has no ranges: no synthetic images are made") in said
    with pytest.raises(UsageError, match="there already"):
        export(calibration=Synthetic(steps=10**9))


def test_synthetic_images_have_the_stored_size_and_fill_the_centre(net: Net) -> None:
    made = Synthetic(images=12, steps=30).make(net, SMALL).pixels
    assert made.shape == (12, SMALL.resize, SMALL.resize, 3) and made.dtype == np.uint8
    inner = synthesise(net, SMALL, 12, 30).numpy()
    assert np.array_equal(verify.centre(made, SMALL.size), inner)


def test_large_images_are_made_a_few_at_a_time(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [batch_for(size) for size in (16, 32, 64, 128, 224, 512)] == [64, 64, 64, 16, 8, 8]
    asked: list[Any] = []

    def spy(*arguments: Any, **settings: Any) -> Any:
        asked.append(settings)
        return torch.zeros(2, 128, 128, 3, dtype=torch.uint8)

    monkeypatch.setattr("edgecil.synthesis.dreams.synthesise", spy)
    Synthetic(images=2).make(net, replace(SMALL, size=128, resize=128))
    assert asked[0]["batch"] == 16 and "--calibrate DIR" in asked[0]["hint"]


def test_wrong_number_of_labels(export: Any, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="6 scores, but there are 5 labels") as caught:
        export(precision="fp32", labels=LABELS[:5])
    assert caught.value.exit_code == 4
    assert not list(tmp_path.iterdir())


def test_graph_that_is_not_the_model(
    export: Any, core: ModelProto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = ModelProto()
    wrong.CopyFrom(core)
    bias = next(t for t in wrong.graph.initializer if t.name == "net.head.bias")
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] += 0.05
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    monkeypatch.setattr(export_module, "core_graph", lambda *_: wrong)
    with pytest.raises(VerificationError, match="differs from the model") as caught:
        export(precision="fp32")
    assert caught.value.exit_code == 4
    assert not list(tmp_path.iterdir())


def test_int8_that_predicts_something_else(export: Any, ranges: Any, tmp_path: Path) -> None:
    clipped = {name: (low / 100, high / 100) for name, (low, high) in ranges.items()}
    with pytest.raises(VerificationError, match="same class as float32 on") as caught:
        export(ranges=clipped, test=pictures(60, SMALL.resize, seed=11))
    assert caught.value.exit_code == 4 and "--calibrate" in str(caught.value.hint)
    assert not list(tmp_path.iterdir())


def test_int8_that_is_constant_is_refused_even_on_noise(export: Any, ranges: Any) -> None:
    dead = dict.fromkeys(ranges, (-1000000000.0, 1000000000.0))
    with pytest.raises(VerificationError, match="same scores for every image"):
        export(ranges=dead)


def test_accuracy_gate_counts_images() -> None:
    labels = np.repeat(np.arange(4), 100)
    reference = np.eye(4, dtype=np.float32)[labels]
    worse = reference.copy()
    worse[300:304] = worse[0]
    with pytest.raises(VerificationError, match=r"4\.00 points on new classes"):
        check_accuracy(reference, worse, labels, 3, 1.0)
    assert check_accuracy(reference, worse, labels, 3, 4.0)["new"].drop == pytest.approx(4)
    few = check_accuracy(reference[290:301], worse[290:301], labels[290:301], 3, 1.0)
    assert few["new"].images == 1 and few["new"].drop == 100  # one image is no evidence
    assert set(check_accuracy(reference, worse, labels, 0, 4.0)) == {"new", "all"}


def test_scores_that_are_not_finite() -> None:
    good, bad = np.eye(3, dtype=np.float32), np.full((3, 3), np.nan, np.float32)
    for first, second in ((good, bad), (bad, good)):
        with pytest.raises(VerificationError, match="not finite"):
            check_parity(first, second, "real")
    with pytest.raises(VerificationError, match="not finite"):
        check_agreement(good, bad, "noise", 0.9)


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Let the kernel refuse files above ``limit`` bytes."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_nothing_behind(export: Any, ranges: Any, tmp_path: Path) -> None:
    for changes in ({"ranges": ranges}, {"precision": "fp32"}):
        with full_disk(20_000), pytest.raises(EdgecilError, match="cannot write") as caught:
            export(**changes)
        assert caught.value.exit_code == 1
        assert not list(tmp_path.iterdir())
    export(ranges=ranges)


def test_a_bundle_that_the_device_refuses_is_not_written(
    export: Any, ranges: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The recorded scores are wrong: only loading the bundle as a device does can tell.
    honest = bundle.encode_selftest
    monkeypatch.setattr(
        bundle,
        "encode_selftest",
        lambda test: honest(test._replace(scores=test.scores + 2 * test.tolerance)),
    )
    with pytest.raises(VerificationError, match="device runtime refuses") as caught:
        export(ranges=ranges)
    assert caught.value.exit_code == 4
    assert not list(tmp_path.iterdir())


def test_usage_errors_come_before_any_work(export: Any, ranges: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none recorded"):
        export()
    with pytest.raises(UsageError, match="bundle name"):
        export(name="../birds", ranges=ranges)
    (tmp_path / "birds-v2").mkdir()
    with pytest.raises(UsageError, match="there already") as caught:
        export(ranges=ranges)
    assert "--force" in caught.value.hint
    with pytest.raises(UsageError, match="there already") as caught:
        export(ranges=ranges, force=True)  # it would remove a folder that is no bundle
    assert "no bundle" in caught.value.hint
    assert list(tmp_path.iterdir()) == [tmp_path / "birds-v2"]


def refuse() -> dict[str, int]:
    raise VerificationError("the device runtime refuses the bundle")


def test_force_replaces_a_bundle_by_one_that_passed_and_by_no_other(
    export: Any, ranges: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_bundle(export(precision="fp32").path).manifest
    with monkeypatch.context() as patch:
        patch.setattr(writing, "_trial", lambda folder: refuse())
        with pytest.raises(VerificationError):
            export(ranges=ranges, force=True)
    assert open_bundle(tmp_path / "birds-v2").manifest == first
    write = bundle.write_bundle

    def full(folder: Any, *rest: Any) -> Any:
        if Path(folder) == tmp_path:
            raise OSError(28, "No space left on device")
        return write(folder, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(bundle, "write_bundle", full)
        with pytest.raises(EdgecilError, match="No space left"):
            export(ranges=ranges, force=True)
    assert open_bundle(tmp_path / "birds-v2").manifest == first
    export(ranges=ranges, force=True)
    assert open_bundle(tmp_path / "birds-v2").manifest.precision == "int8"
    assert [path.name for path in tmp_path.iterdir()] == ["birds-v2"]


def test_no_test_image(export: Any) -> None:
    empty = pictures(6, SMALL.resize, seed=1)
    with pytest.raises(DataError, match="no image"):
        export(precision="fp32", test=ImageSet(empty.pixels[:0], empty.labels[:0]))


def test_without_onnxruntime_both_extras_are_named(
    export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "onnxruntime" else real(n, *a)
    )
    with pytest.raises(DependencyMissing) as caught:
        export(precision="fp32")
    assert "edgecil[cpu]" in str(caught.value.hint) and "edgecil[gpu]" in str(caught.value.hint)


def test_the_function_of_the_package_survives_the_import_of_its_modules() -> None:
    from edgecil import api

    assert edgecil.export is api.export


def test_a_target_fills_the_choices_and_is_recorded(export: Any, ranges: Any) -> None:
    device = replace(targets.load("x86-old-atom"), resize_in_graph=False, max_pixels=4000)
    report = export(ranges=ranges, target=device, min_agreement=0.5)
    manifest = open_bundle(report.path).manifest
    assert manifest.target == device.entry()
    assert (manifest.fixed_input, manifest.max_pixels) == (True, 4000)
    assert report.to_json()["target"] == "x86-old-atom"
    model = onnx.load(report.path / "model.onnx")
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert weights and max(abs(w.astype(int)).max() for w in weights) == 64  # 7 bits


def test_a_bundle_that_does_not_fit_its_target_is_not_written(
    export: Any, ranges: Any, tmp_path: Path
) -> None:
    device = replace(targets.load("rpi-zero2w"), memory=40_000_000)
    with pytest.raises(BudgetError, match=r"allows 40 MB of memory, this bundle needs") as caught:
        export(ranges=ranges, target=device)
    assert caught.value.exit_code == 3 and "rpi4" in caught.value.hint
    assert not list(tmp_path.iterdir())
