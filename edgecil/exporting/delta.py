"""Writing a delta between two bundles; ``edgecil_runtime.delta`` reads it and has the format.

Tensors are found as byte ranges of the ONNX files. One that both files hold under the same
name becomes differences from the old one, which small changes keep small; what follows the old
length (the rows of new classes) and everything that cannot be matched is stored as it is.
"""

from __future__ import annotations

import lzma
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgecil.errors import EdgecilError, UsageError, VerificationError
from edgecil_runtime.bundle import MANIFEST, MODEL, Bundle, open_bundle
from edgecil_runtime.container import write_atomic
from edgecil_runtime.delta import (
    ADD_BYTES,
    ADD_WORDS,
    CHUNK,
    COPY,
    LITERAL,
    MAGIC,
    STREAMS,
    Delta,
    Step,
    Stream,
    apply_delta,
    encode_header,
    read_delta,
)
from edgecil_runtime.errors import RuntimeFault
from edgecil_runtime.hashing import sha256
from edgecil_runtime.revision import Revision
from edgecil_runtime.signatures import read_signature

SUFFIX = ".delta"
_SHORTEST = 16  # bytes of a copy that is worth a step of its own
_RESUMED = 6  # the same where the old file goes on as it did before a difference
_DICTIONARY_BYTES = 1 << 20  # of xz: what the device needs to decode


class Region(NamedTuple):
    """Where the values of a tensor lie in a file, and the bytes of one value."""

    start: int
    stop: int
    width: int


@dataclass(frozen=True)
class DeltaReport:
    """A delta that was written. Sizes are in bytes."""

    path: Path
    source: str
    """Folder name of the bundle that devices must have."""
    bytes: int
    full_bytes: int
    """Size of the whole new bundle."""
    differences: bool
    """False when a compressed copy of the new bundle was smaller than any difference."""

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        return {**vars(self), "path": str(self.path)}


def open_previous(path: Path, name: str) -> Bundle:
    """Return the verified bundle from which a delta to a new bundle ``name`` shall start.

    Raises:
        UsageError: it is no bundle, damaged, or of another model.
    """
    try:
        bundle = open_bundle(path)
    except RuntimeFault as error:
        raise UsageError(
            f"no delta from there: {error.message}",
            hint="give the folder of the very bundle that the devices have: --delta-from DIR",
        ) from None
    if bundle.manifest.name != name:
        raise UsageError(
            f"{path} is a bundle of {bundle.manifest.name!r}, not of {name!r}",
            hint=f"--name {bundle.manifest.name}",
        )
    return bundle


def make_delta(old: Bundle, new: Bundle, folder: Path) -> DeltaReport:
    """Return the report of the delta from bundle ``old`` to ``new``, written to ``folder``.

    The device's code has applied it to ``old``, which gave ``new`` to the byte.

    Raises:
        EdgecilError: no delta would be smaller than the bundle; nothing is written.
        VerificationError: applying it does not give the new bundle; nothing is written.
        OSError: the disk is full or not writable.
    """
    contents = {name: _content(new, name) for name in (MANIFEST, *new.manifest.files)}
    bases = {name: _content(old, name) for name in contents}
    revisions = [Revision.of(bundle.path, bundle.manifest) for bundle in (old, new)]
    steps = {name: file_steps(name, bases[name], data) for name, data in contents.items()}
    copies = {name: [Step(LITERAL, 0, len(data))] for name, data in contents.items()}
    signature = read_signature(new.path)
    found = [_encoded(revisions, chosen, bases, contents, signature) for chosen in (steps, copies)]
    data = min(found, key=len)
    full = sum(map(len, contents.values()))
    if len(data) >= full:
        raise EdgecilError(f"no delta from {revisions[0].folder}: it would not be smaller")
    path = folder / f"{revisions[1].folder}-from-v{revisions[0].version}{SUFFIX}"
    with tempfile.TemporaryDirectory(prefix="edgecil-delta-") as scratch:
        trial = Path(scratch, path.name)
        trial.write_bytes(data)
        _check(trial, old.path, contents)
    write_atomic(path, data)
    return DeltaReport(path, revisions[0].folder, len(data), full, data is found[0])


def _content(bundle: Bundle, name: str) -> bytes:
    known = name == MANIFEST or name in bundle.manifest.files
    return (bundle.path / name).read_bytes() if known else b""


def _encoded(
    revisions: list[Revision],
    steps: Mapping[str, list[Step]],
    bases: Mapping[str, bytes],
    contents: Mapping[str, bytes],
    signature: bytes | None,
) -> bytes:
    gathered: dict[int, list[bytes]] = {kind: [] for kind in STREAMS}
    for name, chosen in steps.items():
        for kind, part in stream_parts(chosen, bases[name], contents[name]):
            gathered[kind].append(part)
    packed = {kind: compressed(b"".join(parts)) for kind, parts in gathered.items()}
    streams = {kind: Stream(codec, len(data)) for kind, (codec, data) in packed.items()}
    files = {name: tuple(chosen) for name, chosen in steps.items()}
    delta = Delta(Path(), revisions[0], revisions[1], files, streams, 0, signature)
    return _assembled(delta, b"".join(data for _, data in packed.values()))


def _assembled(delta: Delta, streams: bytes) -> bytes:
    header = encode_header(delta)
    digest: bytes = sha256(header + streams).digest()
    return MAGIC + len(header).to_bytes(4, "little") + digest + header + streams


def sign_delta(path: Path, signature: bytes) -> None:
    """Put the signature of the new bundle into the delta at ``path``.

    Raises:
        BundleError: it is no delta, or damaged.
        OSError: the disk is full or not writable; the file is as it was.
    """
    delta = read_delta(path)
    streams = path.read_bytes()[delta.start :]
    write_atomic(path, _assembled(delta._replace(signature=signature), streams))


def _check(delta: Path, old: Path, contents: Mapping[str, bytes]) -> None:
    target = delta.parent / "target"
    target.mkdir()
    try:
        apply_delta(read_delta(delta), old, target)
    except RuntimeFault as error:
        raise VerificationError(f"the delta cannot be applied: {error.message}") from None
    for name, data in contents.items():
        if (target / name).read_bytes() != data:
            raise VerificationError(f"the delta gives another {name} than the new bundle has")


def file_steps(name: str, old: bytes, new: bytes) -> list[Step]:
    """Return how the file ``name`` is made of the old one and of bytes that a delta brings."""
    regions: list[tuple[Region, Region]] = []
    before: dict[str, Region] = {}
    if name == MODEL:
        before, after = tensors(old), tensors(new)
        shared = [(before[key], after[key]) for key in after if key in before]
        regions = sorted((pair for pair in shared if pair[0].width == pair[1].width), key=_start)
    matcher = _Matcher(old, list(before.values()))
    steps: list[Step] = []
    position = 0
    for region, target in regions:
        steps += matcher.steps(new, position, target.start)
        steps += _tensor_steps(old, new, region, target)
        position = target.stop
    steps += matcher.steps(new, position, len(new))
    return _merged(steps)


def _start(pair: tuple[Region, Region]) -> int:
    return pair[1].start


def _tensor_steps(old: bytes, new: bytes, region: Region, target: Region) -> list[Step]:
    common = min(region.stop - region.start, target.stop - target.start)
    rest = Step(LITERAL, 0, target.stop - target.start - common)
    same = old[region.start : region.start + common] == new[target.start : target.start + common]
    changed = ADD_WORDS if region.width == 4 else ADD_BYTES
    return [Step(COPY if same else changed, region.start, common), rest]


def _merged(steps: Iterable[Step]) -> list[Step]:
    merged: list[Step] = []
    for step in steps:
        last = merged[-1] if merged else None
        if step.length == 0:
            continue
        if last is not None and _continues(last, step):
            merged[-1] = last._replace(length=last.length + step.length)
        else:
            merged.append(step)
    return merged


def _continues(last: Step, step: Step) -> bool:
    # Differences of words lie in chunks counted from the start of their step: they stay apart.
    adjacent = step.kind == COPY and last.offset + last.length == step.offset
    return last.kind == step.kind and (step.kind == LITERAL or adjacent)


class _Matcher:
    """Finds pieces of new files in an old one, outside its tensors."""

    def __init__(self, old: bytes, tensors: list[Region]) -> None:
        self.old = old
        self.places: dict[bytes, int] = {}
        start = 0
        for region in [*sorted(tensors), Region(len(old), len(old), 1)]:
            for i in range(start, region.start - _SHORTEST + 1):
                self.places.setdefault(old[i : i + _SHORTEST], i)
            start = region.stop

    def steps(self, new: bytes, start: int, stop: int) -> Iterator[Step]:
        """Yield steps that make ``new[start:stop]``."""
        literal = position = start
        resumed = 0  # old offset minus new offset of the last copy
        while position < stop:
            offset = position + resumed
            length = self._equal(new, position, offset, stop)
            if length < min(_RESUMED, stop - position):
                offset = self.places.get(new[position : position + _SHORTEST], -1)
                length = self._equal(new, position, offset, stop)
                if length < _SHORTEST:
                    position += 1
                    continue
            yield Step(LITERAL, 0, position - literal)
            yield Step(COPY, offset, length)
            resumed = offset - position
            position += length
            literal = position
        yield Step(LITERAL, 0, stop - literal)

    def _equal(self, new: bytes, position: int, offset: int, stop: int) -> int:
        """Return how many bytes from ``offset`` on are those of ``new`` from ``position`` on."""
        if not 0 <= offset < len(self.old):
            return 0
        length, most = 0, min(stop - position, len(self.old) - offset)
        while length < most:
            size = min(256, most - length)
            a, b = position + length, offset + length
            if new[a : a + size] == self.old[b : b + size]:
                length += size
                continue
            while new[position + length] == self.old[offset + length]:
                length += 1
            break
        return length


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


def stream_parts(steps: Iterable[Step], old: bytes, new: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield what the steps of one file take from the streams: which stream, and bytes."""
    position = 0
    for step in steps:
        for done in range(0, step.length, CHUNK):
            count = min(CHUNK, step.length - done)
            after = new[position + done : position + done + count]
            before = old[step.offset + done : step.offset + done + count]
            if step.kind != COPY:
                yield step.kind, _difference(step.kind, before, after)
        position += step.length


def _difference(kind: int, before: bytes, after: bytes) -> bytes:
    if kind == LITERAL:
        return after
    if kind == ADD_BYTES:
        return (np.frombuffer(after, np.uint8) - np.frombuffer(before, np.uint8)).tobytes()
    words = np.frombuffer(after, "<u4") - np.frombuffer(before, "<u4")
    planes: bytes = words.astype("<u4").view(np.uint8).reshape(-1, 4).T.tobytes()
    return planes


def compressed(data: bytes) -> tuple[str, bytes]:
    """Return the codec that makes ``data`` smallest, and the result."""
    found = [("stored", data), ("zlib", zlib.compress(data, 9))]
    # With pb = 0 xz codes bytes without context, or by the one before (lc): what differences
    # of weights need. Its window is small, because the device must hold it.
    for context in (0, 3):
        filters = [
            {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": _DICTIONARY_BYTES, "lc": context,
             "lp": 0, "pb": 0}
        ]  # fmt: skip
        found.append(("xz", lzma.compress(data, check=lzma.CHECK_NONE, filters=filters)))
    return min(found, key=lambda pair: len(pair[1]))
