"""Where the tensors of an ONNX file keep their values, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Region(NamedTuple):
    """Where the values of a tensor lie in a file, and the bytes of one value."""

    start: int
    stop: int
    width: int


def tensors(model: bytes) -> dict[str, Region]:
    """Return where the tensors of a serialised ONNX model keep their values, by name.

    Field numbers are those of onnx.proto. Values in other encodings than raw bytes and packed
    floats (small integers) are left out.
    """
    found = {}
    for graph in _fields(model, 0, len(model)):
        if graph.number != 7:  # ModelProto.graph
            continue
        for tensor in _fields(model, graph.start, graph.stop):
            if tensor.number != 5:  # GraphProto.initializer
                continue
            parts = {f.number: f for f in _fields(model, tensor.start, tensor.stop)}
            values = parts.get(9) or parts.get(4)  # TensorProto.raw_data, float_data
            if values is not None and 8 in parts:
                name = model[parts[8].start : parts[8].stop].decode()
                width = 4 if parts[2].value in (1, 6) else 1  # FLOAT and INT32 are words
                found[name] = Region(values.start, values.stop, width)
    return found


class _Field(NamedTuple):
    number: int
    start: int
    stop: int
    value: int


def _fields(data: bytes, start: int, stop: int) -> Iterator[_Field]:
    """Yield the fields of the protobuf message in ``data[start:stop]``."""
    while start < stop:
        key, start = _varint(data, start)
        kind, value = key & 7, 0
        if kind == 0:
            value, end = _varint(data, start)
        elif kind == 2:
            size, start = _varint(data, start)
            end = start + size
        else:
            end = start + {1: 8, 5: 4}[kind]
        yield _Field(key >> 3, start, end, value)
        start = end


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        shift, position = shift + 7, position + 1
        if byte < 128:
            return value, position
