"""Writing deltas: byte ranges of tensors, steps that give every byte back, scales that suit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exporting.pictures_of_classes import LABELS, SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

from edgecil.errors import EdgecilError, UsageError, VerificationError
from edgecil.exporting import delta as module
from edgecil.exporting.calibrate import calibrate
from edgecil.exporting.delta import make_delta, stream_parts
from edgecil.exporting.graph import fp32_graph
from edgecil.exporting.matching import file_steps
from edgecil.exporting.quantise import quantise
from edgecil.exporting.scales import WEIGHT_ERROR, channel_scale, covers, scales_like
from edgecil.exporting.tensor_bytes import tensors
from edgecil.exporting.versions import export_version
from edgecil.nets.net import Net
from edgecil.nets.rules import ArgmaxRule
from edgecil_runtime.bundle import MODEL, open_bundle
from edgecil_runtime.delta import ADD_BYTES, ADD_WORDS, COPY, LITERAL, apply_delta, read_delta


@pytest.fixture(scope="module")
def ranges(core: ModelProto, calibration_pixels: np.ndarray) -> Any:
    return dict(calibrate(core, SMALL, calibration_pixels).ranges)


@pytest.fixture(scope="module")
def learned(net: Net) -> Net:
    """The shared network after a little more learning: weights moved, channels stretched."""
    import copy

    draw = torch.Generator().manual_seed(0)
    moved = copy.deepcopy(net)
    with torch.no_grad():
        for values in moved.parameters():
            noise = torch.randn(values.shape, generator=draw)
            values.add_(0.03 * values.std(correction=0) * noise).mul_(1.04)
    return moved


@pytest.fixture(scope="module")
def exported(net: Net, learned: Net, rule: ArgmaxRule, ranges: Any, tmp_path_factory: Any) -> Any:
    """Version 1, and the report of version 2 with a delta from it."""
    folder = tmp_path_factory.mktemp("bundles")
    common: dict[str, Any] = {"name": "birds", "method": "lwm", "output": folder, "ranges": ranges}
    old = export_version(net, rule, SMALL, LABELS, version=1, parent=None, **common)
    new = export_version(
        learned, rule, SMALL, LABELS, version=2, parent=1, delta_from=old.path, **common
    )
    return old, new


def rebuilt(name: str, old: bytes, new: bytes) -> bytes:
    """Return what steps and differences make of the old file, by plain arithmetic."""
    steps = file_steps(name, old, new)
    parts = stream_parts(steps, old, new)
    made = b""
    for step in steps:
        end = len(made) + step.length
        while len(made) < end:
            count = min(module.CHUNK, end - len(made))
            place = step.offset + step.length - (end - len(made))
            before = np.frombuffer(old[place : place + count], np.uint8)
            if step.kind == COPY:
                made += before.tobytes()
                continue
            kind, change = next(parts)
            assert kind == step.kind
            values = np.frombuffer(change, np.uint8)
            if kind == ADD_BYTES:
                values = ((before.astype(int) + values) % 256).astype(np.uint8)
            elif kind == ADD_WORDS:
                planes = values.reshape(4, -1).astype(np.uint64)
                words = sum(planes[i] << np.uint64(8 * i) for i in range(4))
                total = (before.view("<u4").astype(np.uint64) + words) % np.uint64(2**32)
                values = total.astype("<u4").view(np.uint8)
            made += values.tobytes()
    assert next(parts, None) is None
    return made


def test_tensors_are_found_where_onnx_has_them(exported: Any) -> None:
    data = (exported[0].path / MODEL).read_bytes()
    found = tensors(data)
    model = onnx.load_from_string(data)
    checked = 0
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name in found:
            region = found[tensor.name]
            assert data[region.start : region.stop] == values.tobytes()
            assert region.width == (4 if values.dtype.itemsize == 4 else 1)
            checked += 1
    assert checked > 60
    weights = {t.name for t in model.graph.initializer if t.name.endswith("weight_quantized")}
    assert weights and weights <= set(found)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=40))))
def test_any_file_comes_back(old: bytes, edits: list[tuple[int, bytes]]) -> None:
    new = old
    for place, text in edits:
        new = new[:place] + text + new[place + len(text) // 2 :]
    assert rebuilt("manifest.json", old, new) == new


def test_a_model_comes_back_and_its_weights_are_differences(exported: Any) -> None:
    old, new = ((report.path / MODEL).read_bytes() for report in exported)
    steps = file_steps(MODEL, old, new)
    assert rebuilt(MODEL, old, new) == new
    by_kind = {k: sum(s.length for s in steps if s.kind == k) for k in range(4)}
    assert by_kind[ADD_BYTES] > 0.9 * exported[1].weights_bytes * 0.75
    assert by_kind[LITERAL] < 2000, "the structure is copied"
    assert all(step.length % 4 == 0 for step in steps if step.kind == ADD_WORDS)


def test_rows_of_new_classes_are_appended() -> None:
    small, wide = (
        onnx.helper.make_model(
            onnx.helper.make_graph(
                [], "g", [], [], [numpy_helper.from_array(values[:rows], "head.weight")]
            )
        ).SerializeToString()
        for values in [np.random.default_rng(0).normal(size=(7, 64)).astype(np.float32)]
        for rows in (5, 7)
    )
    steps = file_steps(MODEL, small, wide)
    assert sum(s.length for s in steps if s.kind == LITERAL) < 2 * 64 * 4 + 40
    assert rebuilt(MODEL, small, wide) == wide and rebuilt(MODEL, wide, small) == small


def test_a_large_word_tensor_is_stored_in_planes() -> None:
    draw = np.random.default_rng(0)
    old = draw.normal(size=40_000).astype(np.float32)
    new = old * np.float32(1.0001)
    models = [
        onnx.helper.make_model(
            onnx.helper.make_graph([], "g", [], [], [numpy_helper.from_array(values, "w")])
        ).SerializeToString()
        for values in (old, new)
    ]
    assert rebuilt(MODEL, *models) == models[1]
    parts = list(stream_parts(file_steps(MODEL, *models), *models))
    assert len([p for p in parts if p[0] == ADD_WORDS]) == 3, "chunks of 64 KiB"
    packed = module.compressed(b"".join(p for k, p in parts if k == ADD_WORDS))[1]
    assert len(packed) < 0.5 * new.nbytes


def test_export_with_a_delta(exported: Any, tmp_path: Path) -> None:
    old, new = exported
    report = new.delta
    assert report.path.name == "birds-v2-from-v1.delta" and report.source == "birds-v1"
    assert report.bytes == report.path.stat().st_size < 0.7 * report.full_bytes
    assert report.full_bytes == sum(p.stat().st_size for p in new.path.iterdir())
    assert json.loads(json.dumps(new.to_json()))["delta"]["bytes"] == report.bytes
    apply_delta(read_delta(report.path), old.path, tmp_path)
    for path in new.path.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_frozen_trunk_stays_as_it_was(
    exported: Any, net: Net, rule: ArgmaxRule, ranges: Any
) -> None:
    # The same weights, ranges a little narrower as new classes give them: every map and every
    # weight keeps its scale, so nothing in the trunk changes.
    old = onnx.load(exported[0].path / MODEL)
    fp32 = fp32_graph(net, rule, SMALL, {})
    narrower = {name: (0.95 * low, 0.95 * high) for name, (low, high) in ranges.items()}
    new = quantise(fp32, narrower, old)
    before = {t.name: numpy_helper.to_array(t) for t in old.graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in new.graph.initializer}
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert scales_like(fp32, fp32, ranges) == {}, "a float graph has none to give"


def test_the_scale_of_a_channel() -> None:
    draw = np.random.default_rng(0)
    integers = draw.integers(-127, 128, 500).astype(np.float32)
    scale = np.float32(0.01)
    assert channel_scale(integers * scale, integers, scale) == scale
    stretched = (integers * 0.013).astype(np.float32)
    fitted = channel_scale(stretched, integers, scale)
    assert fitted == pytest.approx(0.013, rel=1e-4), "a stretch costs nothing"
    other = draw.normal(size=500).astype(np.float32)
    own = np.abs(other).max() / 127
    chosen = channel_scale(other, integers, np.float32(own / 30))
    error = np.square(other - np.clip(np.rint(other / chosen), -127, 127) * chosen).sum()
    least = np.square(other - np.rint(other / own) * own).sum()
    assert error <= WEIGHT_ERROR * least * (1 + 1e-5)
    zeros = np.zeros(9, np.float32)
    assert channel_scale(zeros, zeros, np.float32(0.5)) == 0.5
    assert channel_scale(zeros, zeros, np.float32(0)) == 1


def test_the_range_of_a_map() -> None:
    scale, zero = 2 / 255, 0  # 0 to 2
    assert covers(scale, zero, 0.0, 2.0) and covers(scale, zero, 0.1, 1.9)
    assert not covers(scale, zero, 0.0, 1.7), "it would round coarser"
    assert not covers(scale, zero, 0.0, 2.3) and not covers(scale, zero, -0.3, 2.0)


def test_a_previous_bundle_that_is_none(
    exported: Any, net: Net, rule: ArgmaxRule, ranges: Any, tmp_path: Path
) -> None:
    def run(name: str, delta_from: Path) -> Any:
        return export_version(
            net, rule, SMALL, LABELS, version=3, parent=1, name=name, method="lwm",
            output=tmp_path, ranges=ranges, delta_from=delta_from,
        )  # fmt: skip

    with pytest.raises(UsageError, match="no such bundle folder") as error:
        run("birds", tmp_path / "birds-v9")
    assert "--delta-from DIR" in error.value.hint
    with pytest.raises(UsageError, match="a bundle of 'birds', not of 'cats'"):
        run("cats", exported[0].path)
    assert not list(tmp_path.iterdir()), "said before anything was done"


def test_never_larger_than_the_bundle(exported: Any, tmp_path: Path, monkeypatch: Any) -> None:
    old, new = (open_bundle(report.path) for report in exported)
    monkeypatch.setattr(module, "compressed", lambda data: ("stored", data))
    literal = lambda name, old, new: [module.Step(LITERAL, 0, len(new))]  # noqa: E731
    monkeypatch.setattr(module, "file_steps", literal)
    with pytest.raises(EdgecilError, match="would not be smaller"):
        make_delta(old, new, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_copy_where_differences_do_not_pay(
    exported: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    old, new = (open_bundle(report.path) for report in exported)
    monkeypatch.setattr(module, "file_steps", lambda name, old, new: _scattered(old, new))
    report = make_delta(old, new, tmp_path)
    assert not report.differences and report.bytes < report.full_bytes
    (tmp_path / "out").mkdir()
    apply_delta(read_delta(report.path), old.path, tmp_path / "out")
    assert (tmp_path / "out" / MODEL).read_bytes() == new.model_path.read_bytes()


def _scattered(old: bytes, new: bytes) -> list[Any]:
    # Differences from bytes that have nothing to do with the new ones.
    common = min(len(old), len(new)) - 999
    steps = [module.Step(ADD_BYTES, 999, common)] if common > 0 else []
    rest = len(new) - sum(step.length for step in steps)
    return [*steps, module.Step(LITERAL, 0, rest)]


def test_what_cannot_be_applied_is_not_written(
    exported: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    old, new = (open_bundle(report.path) for report in exported)
    monkeypatch.setattr(module, "_difference", lambda kind, before, after: bytes(len(after)))
    with pytest.raises(VerificationError, match="delta"):
        make_delta(old, new, tmp_path)
    assert not list(tmp_path.iterdir())
