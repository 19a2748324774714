"""Static int8: uint8 activations, int8 weights per output channel, as QuantizeLinear pairs.

U8S8 is the one choice that is fast on x86 with VNNI and on ARM alike. What runs in int8 is
the convolutional trunk, everything that is a map ``(N, C, H, W)`` behind the front. Pooled
features, head and rule stay in float32: they cost next to no time or space, and scores in
8 bits would tie.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from edgecil.errors import VerificationError
from edgecil.exporting.graph import FRONT, NORMALISED, finish
from edgecil.exporting.packages import require_onnxruntime
from edgecil.exporting.scales import scales_like

_POOLING = ("GlobalAveragePool",)  # of a whole map: the head begins

Ranges = Mapping[str, tuple[float, float]]
"""The values that 8 bits span, least and largest, of every map of a network, by tensor name."""


def map_names(model: ModelProto) -> list[str]:
    """Return the names of the maps ``(N, C, H, W)`` that int8 rounds, in order of execution.

    The first is the normalised image. What only a ReLU reads is left out: the two are one
    operation in int8. The model must be a graph of :mod:`edgecil.exporting.graph`.
    """
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    outputs = [name for node in _trunk(model) for name in node.output]
    return [name for name in [NORMALISED, *outputs] if readers.get(name) != {"Relu"}]


def _trunk(model: ModelProto) -> list[NodeProto]:
    # The nodes behind the front that make float maps, up to pooling.
    graph = onnx.shape_inference.infer_shapes(model).graph
    maps = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
        and len(value.type.tensor_type.shape.dim) == 4
    }
    return [
        node
        for node in model.graph.node
        if maps.issuperset(node.output)
        and not node.name.startswith(FRONT)
        and node.op_type not in _POOLING
    ]


def quantise(
    model: ModelProto,
    ranges: Ranges,
    like: ModelProto | None = None,
    *,
    reduce_range: bool = False,
) -> ModelProto:
    """Return the int8 form of a float32 graph, given the ranges of its maps.

    With ``like``, an int8 graph of an earlier version, its scales are kept where they fit. With
    ``reduce_range`` weights have 7 bits: sums of products fit 16, as x86 without VNNI needs.

    Raises:
        VerificationError: the ranges are not those of this graph.
        DependencyMissing: onnxruntime is not installed.
    """
    require_onnxruntime()
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    _check(ranges, map_names(model))
    inferred = onnx.shape_inference.infer_shapes(model)
    nodes = _trunk(model)
    kept = {} if like is None else scales_like(like, model, ranges)
    with _quiet():
        quantiser = QDQQuantizer(
            inferred,
            per_channel=True,
            reduce_range=reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, _bounds(nodes, ranges)),
            nodes_to_quantize=[node.name for node in nodes],
            nodes_to_exclude=[],
            op_types_to_quantize=sorted({node.op_type for node in nodes}),
            extra_options={"TensorQuantOverrides": kept},
        )
        quantised: ModelProto = quantiser.quantize_model()
    return _finish(quantised, model)


def _check(ranges: Ranges, maps: list[str]) -> None:
    missing, extra = set(maps) - set(ranges), set(ranges) - set(maps)
    if missing or extra:
        name = min(missing or extra)
        raise VerificationError(
            f"the activation ranges belong to another graph: expected {len(maps)} tensors, "
            f"got {len(ranges)}; {name!r} is {'missing' if missing else 'unknown'}",
            hint="calibrate again with --calibrate DIR",
        )


def _bounds(nodes: list[NodeProto], ranges: Ranges) -> dict[str, tuple[Any, Any]]:
    # What only a ReLU reads takes the ReLU's range, as the two become one.
    known = dict(ranges)
    for node in nodes:
        if node.op_type == "Relu":
            known.setdefault(node.input[0], known[node.output[0]])
    return {
        name: (np.asarray(low, np.float32), np.asarray(high, np.float32))
        for name, (low, high) in known.items()
    }


def _finish(quantised: ModelProto, model: ModelProto) -> ModelProto:
    graph = quantised.graph
    del graph.value_info[:]
    graph.value_info.extend(model.graph.value_info)
    nodes = _in_order(graph)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    kept = sorted((t for t in graph.initializer if t.name in used), key=lambda t: t.name)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for message in (graph, *graph.node, *graph.initializer):
        message.doc_string = ""
    finish(quantised)
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(model.metadata_props)
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


def _in_order(graph: GraphProto) -> list[NodeProto]:
    # The quantiser appends its nodes at the end; each goes before the first that needs it.
    producer = {name: node for node in graph.node for name in node.output}
    ordered: dict[str, NodeProto] = {}

    def visit(node: NodeProto) -> None:
        pending = [node]
        while pending:
            top = pending[-1]
            needs = [producer[name] for name in top.input if name in producer]
            needs = [need for need in needs if need.name not in ordered]
            if needs:
                pending.extend(reversed(needs))
            else:
                ordered.setdefault(pending.pop().name, top)

    for node in graph.node:
        visit(node)
    return list(ordered.values())


@contextmanager
def _quiet() -> Iterator[None]:
    # The quantiser reports its heuristics through the root logger.
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
