"""Named arrays in one file: the safetensors layout, read and written with numpy alone.

File: 8 bytes little-endian header length, a JSON header padded with spaces to a multiple of
8, then the raw C-order arrays without holes. Workspace versions, kept memory and bundles all
use it, so one reader serves the workstation and the device. Nothing is ever pickled.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

import numpy as np

from edgecil_runtime.strict_json import decode_json

# A header of this size names 100,000 arrays; the format allows 100 MB, which would take
# gigabytes once decoded.
MAX_HEADER_BYTES = 10_000_000
_NAMES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "|i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
# numpy has no bfloat16: such arrays of others are read as float32, and never written.
_BFLOAT16 = "BF16"
_STORED = {**_NAMES, _BFLOAT16: "<u2"}
_CODES = {np.dtype(numpy_name): name for name, numpy_name in _NAMES.items()}

Spec = Tuple[str, Tuple[int, ...]]


class ContainerError(ValueError):
    """The file is not a well-formed container; the message says at which point."""


class Layout(NamedTuple):
    """Sizes in bytes of a container that is not written yet."""

    header_bytes: int
    data_bytes: int

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.header_bytes + self.data_bytes


def dtype_name(dtype: Any) -> str:
    """Return the container's name of a numpy dtype, such as ``"F32"``.

    Raises:
        ContainerError: the dtype has no name in the format.
    """
    try:
        return _CODES[np.dtype(dtype).newbyteorder("<")]
    except KeyError:
        raise ContainerError(f"arrays of dtype {np.dtype(dtype)} cannot be stored") from None


def _spec_bytes(spec: Spec) -> int:
    return math.prod(spec[1]) * np.dtype(_STORED[spec[0]]).itemsize


def _ordered(specs: Mapping[str, Spec]) -> List[str]:
    # Widest items first, so that every array starts at a multiple of its item size.
    return sorted(specs, key=lambda name: (-np.dtype(_NAMES[specs[name][0]]).itemsize, name))


def _header(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> bytes:
    header: Dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = {key: str(metadata[key]) for key in sorted(metadata)}
    start = 0
    for name in _ordered(specs):
        stop = start + _spec_bytes(specs[name])
        header[name] = {
            "dtype": specs[name][0],
            "shape": list(specs[name][1]),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def layout(specs: Mapping[str, Spec], metadata: Optional[Mapping[str, str]] = None) -> Layout:
    """Return the sizes in bytes that a container of these ``(dtype name, shape)`` will have."""
    header = len(_header(specs, metadata or {}))
    return Layout(header, sum(_spec_bytes(spec) for spec in specs.values()))


def encode(arrays: Mapping[str, Any], metadata: Optional[Mapping[str, str]] = None) -> bytes:
    """Return the bytes of a container that holds ``arrays`` and text ``metadata``."""
    specs = {name: (dtype_name(a.dtype), tuple(a.shape)) for name, a in arrays.items()}
    parts = [_header(specs, metadata or {})]
    for name in _ordered(specs):
        array = np.ascontiguousarray(arrays[name])
        parts.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return b"".join(parts)


def write(
    path: Union[str, Path], arrays: Mapping[str, Any], metadata: Optional[Mapping[str, str]] = None
) -> int:
    """Write a container so that ``path`` holds either the old or the whole new content.

    Returns:
        The size of the file in bytes.

    Raises:
        OSError: the disk is full or the folder cannot be written; ``path`` is untouched.
    """
    data = encode(arrays, metadata)
    write_atomic(path, data)
    return len(data)


def write_atomic(path: Union[str, Path], data: bytes) -> None:
    """Replace ``path`` by ``data``: temporary file beside it, fsync, rename, fsync of the folder.

    Raises:
        OSError: nothing was replaced, and no temporary file stays behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if temporary.exists():
            temporary.unlink()
    sync_directory(path.parent)


def sync_directory(path: Union[str, Path]) -> None:
    """Make renames inside the folder ``path`` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _entry(name: str, value: Any, data_bytes: int) -> Tuple[Spec, int, int]:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ContainerError(f"array {name!r}: the entry must have dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _STORED:
        raise ContainerError(f"array {name!r}: unknown dtype {dtype!r}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(type(n) is not int or n < 0 for n in numbers):
            raise ContainerError(f"array {name!r}: shape and offsets must be lists of integers")
    spec: Spec = (dtype, tuple(shape))
    if len(offsets) != 2 or offsets[1] - offsets[0] != _spec_bytes(spec):
        raise ContainerError(f"array {name!r}: offsets {offsets} do not match shape {shape}")
    if offsets[1] > data_bytes:
        raise ContainerError(f"array {name!r}: ends at byte {offsets[1]} of {data_bytes}")
    return spec, offsets[0], offsets[1]


def _parse(buffer: Any) -> Tuple[Dict[str, Any], Dict[str, str]]:
    total = len(buffer)
    if total < 8:
        raise ContainerError(f"{total} bytes are too short for a header")
    length = int.from_bytes(bytes(buffer[:8]), "little")
    if length > min(MAX_HEADER_BYTES, total - 8):
        raise ContainerError(f"the header claims {length} bytes, the file has {total - 8}")
    try:
        header = decode_json(bytes(buffer[8 : 8 + length]))
    except ValueError as error:
        raise ContainerError(f"the header is not valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise ContainerError("the header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(type(v) is not str for v in metadata.values()):
        raise ContainerError("the metadata must map text to text")
    data_bytes = total - 8 - length
    entries = {name: _entry(name, value, data_bytes) for name, value in header.items()}
    expected = 0
    for name in sorted(entries, key=lambda n: entries[n][1:]):
        if entries[name][1] != expected:
            raise ContainerError(f"array {name!r}: starts at {entries[name][1]}, not {expected}")
        expected = entries[name][2]
    if expected != data_bytes:
        raise ContainerError(f"the arrays fill {expected} of {data_bytes} bytes")
    arrays = {}
    for name, (spec, start, stop) in entries.items():
        raw = np.asarray(buffer[8 + length + start : 8 + length + stop]).view(_STORED[spec[0]])
        if spec[0] == _BFLOAT16:  # the upper half of a float32
            raw = (raw.astype("<u4") << np.uint32(16)).view("<f4")
        arrays[name] = raw.reshape(spec[1])
    return arrays, metadata


def decode(data: bytes) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """Return ``(arrays, metadata)`` of container bytes; the arrays are read-only views.

    Arrays of bfloat16 are copies in float32.

    Raises:
        ContainerError: the bytes are not a well-formed container.
    """
    return _parse(np.frombuffer(data, dtype=np.uint8))


def read(path: Union[str, Path], *, mmap: bool = False) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """Return ``(arrays, metadata)`` of a container file.

    With ``mmap`` the arrays are read-only views of the file, loaded when they are touched.

    Raises:
        ContainerError: the file is not a well-formed container; the message names it.
        OSError: the file cannot be read.
    """
    try:
        if mmap and os.path.getsize(path) >= 8:
            return _parse(np.memmap(path, dtype=np.uint8, mode="r"))
        return decode(Path(path).read_bytes())
    except ContainerError as error:
        raise ContainerError(f"{path}: {error}") from None
