"""The float32 graph: what goes in, what comes out, and what must not be in it."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import onnx
import pytest
import torch
from exporting.pictures_of_classes import CLASSES, SMALL, normalised, pictures
from onnx import ModelProto

from edgecil.exporting.graph import core_graph, fp32_graph, with_front, with_metadata
from edgecil.exporting.sessions import open_session, scores
from edgecil.nets.net import Net
from edgecil.nets.rules import ArgmaxRule, NearestMeanRule
from edgecil.settings import Preprocess
from edgecil_runtime.images import fit_square


@pytest.fixture(scope="module")
def front(core: ModelProto) -> ModelProto:
    return with_front(core, SMALL, fixed_input=False)


@torch.no_grad()
def expected(net: Net, rule: torch.nn.Module, pixels: torch.Tensor) -> np.ndarray:
    outputs = net(normalised(pixels, SMALL))
    return rule(outputs.features, outputs.logits).numpy()


def test_graph_gives_the_scores_of_torch(net: Net, rule: ArgmaxRule, front: ModelProto) -> None:
    pixels = pictures(12, SMALL.resize, seed=3).pixels
    found = scores(open_session(front), pixels.numpy())
    np.testing.assert_allclose(found, expected(net, rule, pixels), atol=2e-5, rtol=1e-5)


def test_nearest_mean_rule_is_inside_the_graph(net: Net) -> None:
    pixels = pictures(12, SMALL.resize, seed=3).pixels
    rule = NearestMeanRule(torch.randn(4, net.feature_dim))
    graph = fp32_graph(net, rule, SMALL, {}, fixed_input=True)
    found = open_session(graph).run(None, {"image": pixels.numpy()[:, 4:36, 4:36]})[0]
    assert found.shape == (12, 4)
    np.testing.assert_allclose(found, expected(net, rule, pixels), atol=2e-6)
    assert not [t.name for t in graph.graph.initializer if "head" in t.name]


def test_fixed_input_takes_any_number_of_crops(core: ModelProto, front: ModelProto) -> None:
    pixels = pictures(5, SMALL.resize, seed=4).pixels.numpy()
    fixed = with_front(core, SMALL, fixed_input=True)
    assert not {"Resize", "Slice"} & {n.op_type for n in fixed.graph.node if "front" in n.name}
    found = open_session(fixed).run(None, {"image": pixels[:, 4:36, 4:36]})[0]
    np.testing.assert_allclose(found, scores(open_session(front), pixels), atol=1e-5)


@pytest.mark.parametrize("preprocess", [Preprocess(32, 32, (0.5,) * 3, (0.2,) * 3), SMALL])
@pytest.mark.parametrize(
    "size", [(40, 40), (32, 32), (480, 641), (333, 97), (33, 31), (20, 300), (7, 5), (41, 40)]
)
def test_resize_is_that_of_the_image_reader(
    core: ModelProto, preprocess: Preprocess, size: tuple[int, int]
) -> None:
    # The front alone: its last uint8 tensor is the crop that enters normalisation.
    model = with_front(core, preprocess, fixed_input=False)
    del model.graph.node[7:], model.graph.output[:]
    crop = next(v for v in model.graph.value_info if v.name == "crop")
    model.graph.output.append(crop)
    used = {name for node in model.graph.node for name in node.input}
    keep = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(keep)
    random = np.random.default_rng(sum(size))
    coarse = random.integers(0, 256, (size[0] // 3 + 1, size[1] // 3 + 1, 3), dtype=np.uint8)
    image = coarse.repeat(3, axis=0).repeat(3, axis=1)[: size[0], : size[1]]
    found = open_session(model).run(None, {"image": image[None]})[0][0].astype(int)
    inset = (preprocess.resize - preprocess.size) // 2
    square = fit_square(np.ascontiguousarray(image), preprocess.resize).astype(int)
    wanted = square[inset : inset + 32, inset : inset + 32]
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1


def test_metadata_versions_and_labels(net: Net, rule: ArgmaxRule, core: ModelProto) -> None:
    labels = json.dumps([{"name": "é 犬", "increment": 2}])
    graph = with_front(core, SMALL, fixed_input=False)
    with_metadata(graph, {"labels": labels, "score_kind": "logit"})
    read = onnx.load_from_string(graph.SerializeToString())
    assert {p.key: p.value for p in read.metadata_props} == {
        "labels": labels,
        "score_kind": "logit",
    }
    assert read.ir_version == 8
    assert [(o.domain, o.version) for o in read.opset_import] == [("", 18)]
    assert open_session(read).get_modelmeta().custom_metadata_map["labels"] == labels
    assert [i.name for i in read.graph.input] == ["image"]
    assert [o.name for o in read.graph.output] == ["scores"]


def test_nothing_of_this_machine_is_in_the_file(front: ModelProto) -> None:
    data = copy.deepcopy(front)
    for tensor in data.graph.initializer:
        tensor.raw_data = b""
    text = data.SerializeToString()
    assert not re.findall(rb"/[\w.-]+", text)
    assert b".py" not in text
    for node in front.graph.node:
        assert not node.doc_string and not node.metadata_props


def test_names_do_not_depend_on_the_classes(net: Net, core: ModelProto) -> None:
    # Ranges recorded before the head grew belong to the same maps.
    grown = copy.deepcopy(net)
    grown.head.grow(3)  # type: ignore[operator]
    other = core_graph(grown, ArgmaxRule(CLASSES + 3), SMALL)
    names = [[n.name for n in m.graph.node if n.op_type in ("Conv", "Relu")] for m in (core, other)]
    assert names[0] == names[1]


def test_export_is_repeatable_silent_and_leaves_the_network_alone(
    net: Net,
    rule: ArgmaxRule,
    core: ModelProto,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    training = copy.deepcopy(net).train()
    before = {name: t.clone() for name, t in training.state_dict().items()}
    again = core_graph(training, rule, SMALL)
    assert again.SerializeToString() == core.SerializeToString()
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)
    assert training.training and next(training.parameters()).requires_grad
    assert all(torch.equal(t, before[name]) for name, t in training.state_dict().items())
