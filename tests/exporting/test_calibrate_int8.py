"""Activation ranges from a child process, and the int8 graph made of them."""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exporting.pictures_of_classes import CLASSES, SMALL, pictures
from onnx import ModelProto
from PIL import Image

from edgecil.errors import DataError, VerificationError
from edgecil.exporting.calibrate import Calibration, calibrate, record_ranges, spread
from edgecil.exporting.footprint import activation_bytes, weights_bytes
from edgecil.exporting.graph import core_graph, with_front
from edgecil.exporting.quantise import Ranges, map_names, quantise
from edgecil.exporting.sessions import open_session, scores
from edgecil.nets.build import build
from edgecil.nets.net import Net, NetSpec
from edgecil.nets.rules import ArgmaxRule
from edgecil.settings import IMAGENET


@pytest.fixture(scope="module")
def calibrated(core: ModelProto, calibration_pixels: np.ndarray) -> Calibration:
    return calibrate(core, SMALL, calibration_pixels)


@pytest.fixture(scope="module")
def front(core: ModelProto) -> ModelProto:
    return with_front(core, SMALL, fixed_input=False)


@pytest.fixture(scope="module")
def int8(front: ModelProto, calibrated: Calibration) -> ModelProto:
    return quantise(front, calibrated.ranges)


def maps(core: ModelProto, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Return every map of the float32 graph for stored images, all at once."""
    model = onnx.shape_inference.infer_shapes(with_front(core, SMALL, fixed_input=True))
    names = map_names(model)
    values = {value.name: value for value in model.graph.value_info}
    model.graph.output.extend(values[name] for name in names)
    found = open_session(model).run(names, {"image": pixels[:, 4:36, 4:36]})
    return dict(zip(names, found, strict=True))


def test_ranges_leave_out_the_extremes_of_one_image_in_ten_at_either_end(
    core: ModelProto, calibrated: Calibration, calibration_pixels: np.ndarray
) -> None:
    wanted = maps(core, calibration_pixels)
    assert list(calibrated.ranges) == list(wanted)
    assert calibrated.images == 48
    for name, values in wanted.items():
        of_images = values.reshape(48, -1)
        low = np.quantile(of_images.min(axis=1), 0.1)
        high = np.quantile(of_images.max(axis=1), 0.9)
        np.testing.assert_allclose(calibrated.ranges[name], (low, high), rtol=1e-4, atol=1e-6)


def test_the_child_has_no_torch_and_stays_small(calibrated: Calibration) -> None:
    assert "onnxruntime" in calibrated.modules
    assert not {"torch", "onnx", "PIL", "torchvision"} & set(calibrated.modules)
    assert calibrated.peak_rss_bytes < 200e6


def test_a_folder_gives_the_ranges_of_its_images(
    core: ModelProto, calibrated: Calibration, calibration_pixels: np.ndarray, tmp_path: Path
) -> None:
    for i, image in enumerate(calibration_pixels):
        folder = tmp_path / f"class {i % 3}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    found = calibrate(core, SMALL, tmp_path)
    assert found.images == 48
    for name, pair in calibrated.ranges.items():
        np.testing.assert_allclose(found.ranges[name], pair, rtol=1e-5)


def test_an_image_that_cannot_be_read_is_named(core: ModelProto, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DataError, match=r"broken\.png"):
        calibrate(core, SMALL, tmp_path)


def test_no_image_and_a_wrong_shape_are_refused(core: ModelProto, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image"):
        calibrate(core, SMALL, tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        calibrate(core, SMALL, tmp_path / "missing")
    with pytest.raises(DataError, match=r"\(N, 40, 40, 3\)"):
        calibrate(core, SMALL, np.zeros((2, 32, 32, 3), np.uint8))
    with pytest.raises(DataError, match="at least one"):
        calibrate(core, SMALL, np.zeros((0, 40, 40, 3), np.uint8))


def test_spread_takes_the_first_and_last_thirds_alike() -> None:
    assert spread(list(range(9)), 3) == [1, 4, 7]
    assert spread(np.arange(5), 9).tolist() == [0, 1, 2, 3, 4]


def test_recorded_ranges_are_those_of_a_later_export(
    net: Net, rule: ArgmaxRule, calibrated: Calibration, calibration_pixels: np.ndarray
) -> None:
    recorded = record_ranges(copy.deepcopy(net), rule, SMALL, torch.from_numpy(calibration_pixels))
    assert recorded == dict(calibrated.ranges)


def test_int8_predicts_as_float32(front: ModelProto, int8: ModelProto) -> None:
    data = pictures(120, SMALL.resize, seed=7)
    wide, narrow = (scores(open_session(m), data.pixels.numpy()) for m in (front, int8))
    right = (wide.argmax(1) == data.labels.numpy()).mean()
    assert right > 0.8, "the shared network must have learned something"
    assert (wide.argmax(1) == narrow.argmax(1)).mean() >= 0.95
    assert np.abs(wide - narrow).max() < 0.15 * np.ptp(wide)
    assert np.abs(wide - narrow).max() > 0


def test_int8_runs_in_integer_kernels(int8: ModelProto, tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(int8.SerializeToString(), options)
    kinds = Counter(n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node)
    convolutions = sum(node.op_type == "Conv" for node in int8.graph.node)
    assert convolutions > 5
    assert kinds["QLinearConv"] == convolutions
    assert kinds["QLinearAdd"] == 3
    assert kinds["Conv"] == kinds["Relu"] == 0


def test_int8_weights_are_signed_per_channel_and_activations_unsigned(int8: ModelProto) -> None:
    values = {t.name: onnx.numpy_helper.to_array(t) for t in int8.graph.initializer}
    producers = {name: node for node in int8.graph.node for name in node.output}
    for node in int8.graph.node:
        if node.op_type == "Conv":
            activation, weight = (producers[name] for name in node.input[:2])
            assert weight.op_type == activation.op_type == "DequantizeLinear"
            assert values[weight.input[0]].dtype == np.int8
            assert values[weight.input[1]].shape == (values[weight.input[0]].shape[0],)
            assert values[activation.input[2]].dtype == np.uint8
            assert values[activation.input[1]].shape == ()
    names = {name for node in int8.graph.node if "front_" in node.name for name in node.output}
    assert not any(producers[name].op_type == "QuantizeLinear" for name in names)


def test_int8_file_is_clean_and_small(front: ModelProto, int8: ModelProto) -> None:
    assert int8.ir_version == 8
    assert [(o.domain, o.version) for o in int8.opset_import] == [("", 18)]
    assert int8.ByteSize() < 0.4 * front.ByteSize()
    assert weights_bytes(front) > 3.5 * weights_bytes(int8)
    assert not any(node.doc_string or node.metadata_props for node in int8.graph.node)


def test_activation_bytes_of_a_chain_and_of_int8(front: ModelProto, int8: ModelProto) -> None:
    # ResNet-8 at 32 pixels: the widest moment is a residual sum of three maps of 16 x 32 x 32.
    wide, narrow = (activation_bytes(m, SMALL) for m in (front, int8))
    assert 2 * 4 * 16 * 32 * 32 <= wide <= 4 * 4 * 16 * 32 * 32
    assert wide / 4 <= narrow <= wide / 2


def test_int8_bytes_do_not_depend_on_hash_order(
    front: ModelProto, int8: ModelProto, calibrated: Calibration, tmp_path: Path
) -> None:
    (tmp_path / "fp32.onnx").write_bytes(front.SerializeToString())
    code = (
        "import hashlib, onnx, sys; from edgecil.exporting.quantise import quantise\n"
        f"q = quantise(onnx.load(sys.argv[1]), {dict(calibrated.ranges)!r})\n"
        "print(hashlib.sha256(q.SerializeToString()).hexdigest())"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": f"{root}:{root / 'devices'}"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "fp32.onnx")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == hashlib.sha256(int8.SerializeToString()).hexdigest()


def test_ranges_of_another_network_are_refused(front: ModelProto, calibrated: Calibration) -> None:
    fewer: Ranges = dict(list(calibrated.ranges.items())[:-1])
    with pytest.raises(VerificationError, match="another graph") as caught:
        quantise(front, fewer)
    assert caught.value.exit_code == 4
    with pytest.raises(VerificationError, match="another graph"):
        quantise(front, {**calibrated.ranges, "Conv_99": (0.0, 1.0)})


def test_calibrating_resnet18_at_224_needs_less_than_300_mb() -> None:
    net = build(NetSpec("resnet18"), CLASSES).eval()
    core = core_graph(net, ArgmaxRule(CLASSES), IMAGENET)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 256, 256, 3), dtype=np.uint8)
    few, more = (calibrate(core, IMAGENET, pixels[:n]).peak_rss_bytes for n in (1, 6))
    assert more < 300e6
    assert more - few < 30e6, "memory must not grow with the number of images"
