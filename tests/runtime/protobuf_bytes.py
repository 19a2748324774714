"""Protobuf messages written by hand: for files that no library would write, and without one."""

from __future__ import annotations


def number(value):
    """Return a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(tag, value):
    """Return one field: an int as a varint, text or bytes with their length before them."""
    if isinstance(value, int):
        return number(tag << 3) + number(value)
    data = value.encode() if isinstance(value, str) else value
    return number(tag << 3 | 2) + number(len(data)) + data


def message(*fields):
    """Return the fields ``(tag, value)`` as one message."""
    return b"".join(field(tag, value) for tag, value in fields)


def value_info(name, element=1, sides=(1,)):
    """Return a ValueInfoProto: float32 unless ``element`` says otherwise."""
    shape = message(*[(1, message((1, side))) for side in sides])
    return message((1, name), (2, message((1, message((1, element), (2, shape))))))


def node(*fields, op="Identity", source="x", output="y"):
    """Return a NodeProto of one input and output, with more ``fields``."""
    return message((1, source), (2, output), (4, op), *fields)


def model(*graph_fields, ir=8, opset=18, nodes=None, more=()):
    """Return a ModelProto that passes a float32 ``(1,)`` through, unless ``nodes`` are given."""
    nodes = [node()] if nodes is None else nodes
    graph = message(
        *[(1, n) for n in nodes], (2, "g"), (11, value_info("x")), (12, value_info("y")),
        *graph_fields,
    )  # fmt: skip
    return message((1, ir), (7, graph), (8, message((2, opset))), *more)
