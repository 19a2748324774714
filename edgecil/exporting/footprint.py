"""The memory that a graph itself needs, counted from its nodes."""

from __future__ import annotations

import math

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from edgecil.settings import Preprocess


def weights_bytes(model: ModelProto) -> int:
    """Return the bytes of all initialisers as stored."""
    return sum(
        math.prod(tensor.dims) * _width(tensor.data_type) for tensor in model.graph.initializer
    )


def activation_bytes(model: ModelProto, preprocess: Preprocess) -> int:
    """Return the largest sum of intermediate tensors alive at once for one image, in bytes.

    Nodes run in stored order; a tensor lives from the node that makes it to the last that
    reads it. Between quantised operations only the uint8 form exists, one byte per value.
    """
    graph = _sized(model, preprocess)
    sizes = {value.name: _bytes(value) for value in (*graph.value_info, *graph.output)}
    steps = _fused(graph)
    last = {name: i for i, (inputs, _) in enumerate(steps) for name in inputs}
    last.update({value.name: len(steps) for value in graph.output})
    alive = peak = 0
    ending: dict[int, int] = {}
    for i, (_, outputs) in enumerate(steps):
        for name in outputs:
            size = sizes.get(name, 0)
            alive += size
            ending[last.get(name, i)] = ending.get(last.get(name, i), 0) + size
        peak = max(peak, alive)
        alive -= ending.pop(i, 0)
    return peak


def _sized(model: ModelProto, preprocess: Preprocess) -> GraphProto:
    # Shapes for one image of the network's own size.
    sized = ModelProto()
    sized.CopyFrom(model)
    dims = sized.graph.input[0].type.tensor_type.shape.dim
    for dim, value in zip(dims, (1, preprocess.size, preprocess.size, 3), strict=True):
        dim.dim_value = value
    for output in sized.graph.output:
        output.type.tensor_type.shape.dim[0].dim_value = 1
    names = {value.name for value in sized.graph.value_info}
    side = preprocess.resize
    if "crop" in names:
        known = helper.make_tensor_value_info("resized", TensorProto.UINT8, [1, side, side, 3])
        sized.graph.value_info.append(known)
    return onnx.shape_inference.infer_shapes(sized).graph


def _width(data_type: int) -> int:
    return int(helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _bytes(value: onnx.ValueInfoProto) -> int:
    tensor = value.type.tensor_type
    return math.prod(int(dim.dim_value) for dim in tensor.shape.dim) * _width(tensor.elem_type)


def _fused(graph: GraphProto) -> list[tuple[list[str], list[str]]]:
    # (inputs, outputs) of what onnxruntime runs: DequantizeLinear, operation and
    # QuantizeLinear are one kernel that reads and writes 8-bit tensors.
    constants = {tensor.name for tensor in graph.initializer}
    source: dict[str, str] = {}  # dequantised tensor -> its 8-bit form
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            source[node.output[0]] = node.input[0]
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    steps: list[tuple[list[str], list[str]]] = []
    absorbed: set[str] = set()
    for node in graph.node:
        after = [reader for name in node.output for reader in readers.get(name, [])]
        inputs = [name for name in node.input if name not in constants]
        integer = bool(after) and all(reader.op_type == "QuantizeLinear" for reader in after)
        if integer and any(name in source for name in inputs):
            absorbed.update(reader.name for reader in after)
            outputs = [name for reader in after for name in reader.output]
            inputs = [source.get(name, name) for name in inputs]
            steps.append(([name for name in inputs if name not in constants], outputs))
        elif node.op_type == "DequantizeLinear":
            wide = [r for r in readers.get(node.output[0], []) if not _is_integer(r, readers)]
            if wide and node.input[0] not in constants:
                steps.append((inputs, list(node.output)))
        elif node.name not in absorbed:
            steps.append((inputs, list(node.output)))
    return steps


def _is_integer(node: NodeProto, readers: dict[str, list[NodeProto]]) -> bool:
    after = [reader for name in node.output for reader in readers.get(name, [])]
    return bool(after) and all(reader.op_type == "QuantizeLinear" for reader in after)
