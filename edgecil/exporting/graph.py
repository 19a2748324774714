"""From a network and its rule to one ONNX graph that takes the bytes of an image.

The core (normalised float NCHW to scores) comes from ``torch.onnx.export``; the front
(uint8 NHWC, resize, centre crop, normalisation) is written node by node, because it must be
the same for every network and load in every onnxruntime since 1.16.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgecil.nets.net import Net
from edgecil.nets.rules import Rule
from edgecil.settings import Preprocess

OPSET = 18
IR_VERSION = 8  # what onnxruntime 1.16 reads, and every later one
NORMALISED = "normalised"
"""Name of the tensor between the front and the core: float32 ``(N, 3, S, S)``."""


class Core(nn.Module):
    """A network and its rule as one function from normalised images to scores ``(N, C)``."""

    def __init__(self, net: Net, rule: Rule) -> None:
        super().__init__()
        self.net = net
        self.rule = rule

    def forward(self, images: Tensor) -> Tensor:
        """Return scores ``(N, C)`` of normalised images ``(N, 3, S, S)``."""
        outputs = self.net(images)
        scores: Tensor = self.rule(outputs.features, outputs.logits)
        return scores


def core_module(net: Net, rule: Rule) -> Core:
    """Return a float32 copy of net and rule on the CPU, in eval mode.

    What of the rule fits into the weights is in them: on the device it costs nothing.
    """
    net, rule = rule.folded(net)
    core = Core(copy.deepcopy(net), copy.deepcopy(rule)).cpu().float().eval()
    # The exporter writes other nodes for hard swish on channels-last weights, and names of
    # ranges that were recorded while learning must be those of every later export.
    core = core.to(memory_format=torch.contiguous_format)
    return core.requires_grad_(False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporter warns about its own internals; nothing there can be acted on.
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def core_graph(net: Net, rule: Rule, preprocess: Preprocess) -> ModelProto:
    """Return the graph of net and rule: float32 ``normalised (N, 3, S, S)`` to ``scores (N, C)``.

    N is free. Names depend on the graph alone, so ranges that were recorded for a network
    belong to the same tensors in every later export of it.
    """
    size = preprocess.size
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            core_module(net, rule),
            (torch.zeros(2, 3, size, size),),
            input_names=[NORMALISED],
            output_names=["scores"],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("N")},),
            verbose=False,
        )
        assert program is not None
        model = copy.deepcopy(program.model_proto)
    return clean(model)


def with_front(core: ModelProto, preprocess: Preprocess, *, fixed_input: bool) -> ModelProto:
    """Return the core behind a front that takes uint8 RGB: ``image (1, H, W, 3)`` to ``scores``.

    The front resizes, crops and normalises as ``Preprocess`` says, in uint8 as long as it can:
    a float32 copy of a large frame would be the largest tensor of all. With ``fixed_input`` it
    only normalises ``(N, S, S, 3)``, for engines without antialiased resizing.
    """
    model = copy.deepcopy(core)
    size = preprocess.size
    nodes, constants = _normalise(preprocess, "image" if fixed_input else "crop")
    shape: list[int | str] = ["N", size, size, 3]
    if not fixed_input:
        front, more = _resize_and_crop(preprocess)
        nodes, constants = front + nodes, constants + more
        shape = [1, "H", "W", 3]
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    body = list(model.graph.node)
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend(nodes + body)
    model.graph.initializer.extend(constants)
    model.graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, shape))
    if not fixed_input:  # the one shape that inference cannot know: it fixes all that follow
        known = helper.make_tensor_value_info("crop", TensorProto.UINT8, [1, size, size, 3])
        model.graph.value_info.append(known)
    return model


def _normalise(preprocess: Preprocess, source: str) -> tuple[list[NodeProto], list[TensorProto]]:
    # Not folded into the first convolution: its zero padding means "mean colour" only here.
    std = 255.0 * np.asarray(preprocess.std)
    shift = -np.asarray(preprocess.mean) / np.asarray(preprocess.std)
    nodes = [
        _front("Transpose", [source], "planes", perm=[0, 3, 1, 2]),
        _front("Cast", ["planes"], "levels", to=TensorProto.FLOAT),
        _front("Mul", ["levels", "front.scale"], "scaled"),
        _front("Add", ["scaled", "front.shift"], NORMALISED),
    ]
    values = {"front.scale": 1.0 / std, "front.shift": shift}
    return nodes, [
        numpy_helper.from_array(v.astype(np.float32).reshape(1, 3, 1, 1), name)
        for name, v in values.items()
    ]


def _resize_and_crop(preprocess: Preprocess) -> tuple[list[NodeProto], list[TensorProto]]:
    # Every attribute counts: exclude_outside is what makes borders equal to Pillow's, and
    # "not_smaller" scales both sides alike, as edgecil_runtime.images.fit_square does.
    resize, size = preprocess.resize, preprocess.size
    nodes = [
        _front(
            "Resize",
            ["image", "", "", "front.sizes"],
            "resized",
            axes=[1, 2],
            mode="linear",
            antialias=1,
            exclude_outside=1,
            coordinate_transformation_mode="half_pixel",
            keep_aspect_ratio_policy="not_smaller",
        ),
        _front("Shape", ["resized"], "sides", start=1, end=3),
        _front("Sub", ["sides", "front.resize"], "margins"),
        _front("Div", ["margins", "front.two"], "square"),
        _front("Add", ["square", "front.inset"], "starts"),
        _front("Add", ["starts", "front.size"], "ends"),
        _front("Slice", ["resized", "starts", "ends", "front.axes"], "crop"),
    ]
    values = {
        "front.sizes": [resize, resize],
        "front.resize": [resize],
        "front.two": [2],
        "front.inset": [(resize - size) // 2],
        "front.size": [size],
        "front.axes": [1, 2],
    }
    return nodes, [
        numpy_helper.from_array(np.asarray(v, dtype=np.int64), name) for name, v in values.items()
    ]


FRONT = "front_"
"""Prefix of the names of the front's nodes, which are never quantised."""


def _front(op: str, inputs: list[str], output: str, **attributes: object) -> NodeProto:
    return helper.make_node(op, inputs, [output], name=FRONT + output, **attributes)


def fp32_graph(
    net: Net,
    rule: Rule,
    preprocess: Preprocess,
    metadata: Mapping[str, str],
    *,
    fixed_input: bool = False,
) -> ModelProto:
    """Return the whole float32 graph, from uint8 RGB images to scores.

    ``metadata`` becomes the model's properties. The same network gives the same bytes.
    """
    model = with_front(core_graph(net, rule, preprocess), preprocess, fixed_input=fixed_input)
    return with_metadata(model, metadata)


def with_metadata(model: ModelProto, metadata: Mapping[str, str]) -> ModelProto:
    """Return the checked model with its properties set, in place.

    Raises:
        onnx.checker.ValidationError: the graph is not valid ONNX.
    """
    del model.metadata_props[:]
    helper.set_model_props(model, {key: metadata[key] for key in sorted(metadata)})
    onnx.checker.check_model(model, full_check=True)
    return model


def clean(model: ModelProto) -> ModelProto:
    """Strip everything that is not computation and give every tensor a stable name, in place.

    The exporter records stack traces with the paths of this machine in every node; names that
    it takes from running counters become ``<op>_<n>`` in order of execution.
    """
    graph = model.graph
    for message in (model, graph, *graph.input, *graph.output, *graph.initializer):
        _strip(message)
    del graph.value_info[:]
    keep = {value.name for value in (*graph.input, *graph.output)}
    names = {name: name for name in keep}
    counts: Counter[str] = Counter()
    weights = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        _strip(node)
        node.name = f"{node.op_type}_{counts[node.op_type]}"
        counts[node.op_type] += 1
        for i, name in enumerate(node.input):
            if name in weights and name not in names:
                dotted = name.startswith(("net.", "rule."))
                names[name] = name if dotted else f"{node.name}.{i}"
        for i, name in enumerate(node.output):
            if name:
                names.setdefault(name, node.name if i == 0 else f"{node.name}:{i}")
    _rename(model, names)
    used = [tensor for tensor in graph.initializer if tensor.name in set(names.values())]
    used.sort(key=lambda tensor: tensor.name)
    del graph.initializer[:]
    graph.initializer.extend(used)
    graph.name = "edgecil"
    finish(model)
    return model


def finish(model: ModelProto) -> None:
    """Set IR version, the one opset import and the producer, in place."""
    domains = {node.domain for node in model.graph.node}
    assert domains <= {"", "ai.onnx"}, f"operators outside the standard: {domains}"
    model.ir_version = IR_VERSION
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    model.producer_name, model.producer_version, model.domain = "edgecil", "", ""
    del model.functions[:]


def _strip(message: object) -> None:
    for name in ("doc_string", "metadata_props"):
        if hasattr(message, name):
            message.ClearField(name)  # type: ignore[attr-defined]


def _rename(model: ModelProto, names: Mapping[str, str]) -> None:
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
