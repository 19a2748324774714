"""What an ONNX file may hold, read from its bytes before onnxruntime sees it.

onnxruntime opens every file that a tensor names as its external data. A bundle's graph is a
plain classifier: standard operators in one sequence, all numbers inside the file. Whatever
could read another file (external data), run for ever (loops) or hide nodes from this check
(subgraphs, functions) is refused.

The file is walked as protobuf wire format (https://protobuf.dev/programming-guides/encoding),
with the field numbers of onnx.proto3. Payloads of tensors are skipped, not read, so the memory
needed does not depend on the size of the model.
"""

from __future__ import annotations

import os
from typing import Iterator, NamedTuple, Tuple

from edgecil_runtime.errors import BundleError

_MAX_FIELDS = 200_000  # of the parts that are read; a ResNet-152 in int8 has some 20,000
_WINDOW = 1 << 14
_LONGEST_HEAD = 15  # a tag of five bytes and a number of ten
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_STANDARD = (b"", b"ai.onnx")


class ModelSummary(NamedTuple):
    """IR version and opset that the file itself asks for."""

    ir: int
    opset: int


class _Field(NamedTuple):
    """A field of a message: ``value`` of a number, or the bytes ``[start, stop)`` of the rest."""

    number: int
    wire: int
    value: int
    start: int
    stop: int


class _Malformed(Exception):
    """The bytes are not protobuf; the text says what was found."""


class _Refused(Exception):
    """The graph holds something that a bundle must not hold."""


def check_model_file(descriptor: int, size: int, name: str) -> ModelSummary:
    """Return what the ONNX file asks for, after making sure that it is a plain classifier.

    ``descriptor`` is open for reading, ``size`` the bytes of the file, ``name`` for messages.

    Raises:
        BundleError: not an ONNX graph, or one that holds more than standard operators.
    """
    try:
        return _model(_Wire(descriptor), size)
    except _Malformed as error:
        raise BundleError(
            f"{name}: expected an ONNX graph, got something else: {error}",
            hint="export the model again",
        ) from None
    except _Refused as error:
        raise BundleError(f"{name}: refused: the graph holds {error}") from None


class _Wire:
    """Protobuf fields of a file, read through one small window."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._window = b""
        self._origin = 0
        self._left = _MAX_FIELDS

    def fields(self, start: int, stop: int) -> Iterator[_Field]:
        """Yield the fields of the message in the bytes ``[start, stop)``."""
        at = start
        while at < stop:
            self._left -= 1
            if self._left < 0:
                raise _Malformed(f"more than {_MAX_FIELDS:,} fields")
            field = _field(self._read(at, min(_LONGEST_HEAD, stop - at)), at, stop)
            yield field
            at = field.stop

    def text(self, field: _Field) -> bytes:
        """Return the bytes of a short text field."""
        return self._read(field.start, min(field.stop - field.start, 200))

    def _read(self, start: int, length: int) -> bytes:
        offset = start - self._origin
        if offset < 0 or offset + length > len(self._window):
            self._window = os.pread(self._descriptor, _WINDOW, start)
            self._origin, offset = start, 0
        return self._window[offset : offset + length]


def _field(head: bytes, at: int, stop: int) -> _Field:
    # ``head`` are the first bytes of a field at ``at``, in a message that ends at ``stop``.
    tag, used = _varint(head, 0, 5)
    number, wire = tag >> 3, tag & 7
    if not 1 <= number < 1 << 29:
        raise _Malformed(f"field number {number}")
    if wire == _VARINT:
        value, used = _varint(head, used, 10)
        return _Field(number, wire, value, at, at + used)
    if wire == _BYTES:
        length, used = _varint(head, used, 5)
    elif wire in _FIXED:
        length = _FIXED[wire]
    else:
        raise _Malformed(f"wire type {wire}")
    start = at + used
    if length > stop - start:
        raise _Malformed(f"a field of {length:,} bytes where {stop - start:,} are left")
    return _Field(number, wire, 0, start, start + length)


def _varint(data: bytes, at: int, longest: int) -> Tuple[int, int]:
    # The number, and where the next one begins.
    value = 0
    for index, byte in enumerate(data[at : at + longest]):
        if byte < 0x80:
            return value | byte << (7 * index), at + index + 1
        value |= (byte & 0x7F) << (7 * index)
    raise _Malformed("a number without an end")


def _model(wire: _Wire, size: int) -> ModelSummary:
    ir = opset = graphs = 0
    for field in wire.fields(0, size):
        if field.number == 1 and field.wire == _VARINT:  # ModelProto.ir_version
            ir = field.value
        elif field.number == 7:
            graphs += 1
            _graph(wire, field)
        elif field.number == 8:
            opset = max(opset, _opset(wire, field))
        elif field.number == 20:
            raise _Refused("training information")
        elif field.number == 25:
            raise _Refused("functions of its own")
    if not graphs or not ir or not opset:
        raise _Malformed("no graph, IR version or opset")
    return ModelSummary(ir, opset)


def _inner(wire: _Wire, field: _Field) -> Iterator[_Field]:
    # A reader of protobuf passes over a known field of another wire type.
    return wire.fields(field.start, field.stop) if field.wire == _BYTES else iter(())


def _opset(wire: _Wire, field: _Field) -> int:
    version = 0
    for part in _inner(wire, field):
        if part.number == 1 and part.wire == _BYTES:
            _check_domain(wire, part)
        elif part.number == 2 and part.wire == _VARINT:
            version = part.value
    return version


def _check_domain(wire: _Wire, field: _Field) -> None:
    if wire.text(field) not in _STANDARD:
        shown = wire.text(field).decode("utf-8", "replace")[:40]
        raise _Refused(f"operators that are not standard ONNX: domain {shown!r}")


def _graph(wire: _Wire, field: _Field) -> None:
    for part in _inner(wire, field):
        if part.number == 1:
            _node(wire, part)
        elif part.number == 5:
            _tensor(wire, part)
        elif part.number == 15:
            raise _Refused("sparse tensors")


def _node(wire: _Wire, field: _Field) -> None:
    for part in _inner(wire, field):
        if part.number == 5:
            _attribute(wire, part)
        elif part.number == 7 and part.wire == _BYTES:
            _check_domain(wire, part)


def _attribute(wire: _Wire, field: _Field) -> None:
    for part in _inner(wire, field):
        if part.number in (5, 10):
            _tensor(wire, part)
        elif part.number in (6, 11):
            raise _Refused("a subgraph (a loop or a condition)")
        elif part.number in (22, 23):
            raise _Refused("sparse tensors")


def _tensor(wire: _Wire, field: _Field) -> None:
    for part in _inner(wire, field):
        if part.number == 13 or (part.number == 14 and part.value):
            raise _Refused("a tensor whose numbers are in another file (external data)")
