"""A delta: one file that makes the next bundle out of the one that is installed.

    bytes       content
    0 .. 8      "EDGEDELT"
    8 .. 12     length H of the header, little-endian
    12 .. 44    SHA-256 of everything that follows
    44 .. 44+H  header: JSON, deflated
    44+H ..     three streams, one after the other: literal, bytes, words

The header says for every file of the new bundle how it is put together, as a list of steps
``kind, offset, length``: bytes of the literal stream, a range of the old file, or a range of the
old file with differences added to it, modulo 256 byte by byte (int8 weights) or modulo 2^32
word by word (scales, biases, float32 weights; the four bytes of the words of a chunk are stored
plane by plane, which compresses better). ``docs/updates.md`` has all of it.

Memory is bounded whatever the file says: chunks of 64 KiB, a header of at most 512 kB, and
at most 4 MB for each stream's decoder.
"""

from __future__ import annotations

import json
import os
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Dict, List, Mapping, NamedTuple, Optional, Tuple, Type

import numpy as np

from edgecil_runtime.bundle import MANIFEST
from edgecil_runtime.errors import BundleError
from edgecil_runtime.hashing import sha256
from edgecil_runtime.images import PathLike
from edgecil_runtime.manifest import check_file_name
from edgecil_runtime.revision import Revision, manifest_sha256, whole_number
from edgecil_runtime.signatures import SIGNATURE, SIGNATURE_BYTES
from edgecil_runtime.strict_json import decode_json

MAGIC = b"EDGEDELT"
SCHEMA = 1
CHUNK = 1 << 16
"""Bytes of a step that are handled at once; part of the format, as words are in planes."""
MAX_HEADER_BYTES = 512_000
DECODER_BYTES = 4_000_000
PREFIX_BYTES = len(MAGIC) + 4 + 32

LITERAL, COPY, ADD_BYTES, ADD_WORDS = range(4)
"""Kinds of a step. ``offset`` counts in the old file, and is 0 for a literal."""
STREAMS = (LITERAL, ADD_BYTES, ADD_WORDS)


class Step(NamedTuple):
    """Where the next ``length`` bytes of a file come from."""

    kind: int
    offset: int
    length: int


class Stream(NamedTuple):
    """One compressed stream: ``zlib``, ``xz`` or ``stored``, and its size as stored."""

    codec: str
    bytes: int


class Delta(NamedTuple):
    """A delta whose hash was checked. ``start`` is where the streams begin in its file.

    ``signature`` is that of the new bundle, unchecked; None when it has none.
    """

    path: Path
    source: Revision
    target: Revision
    files: Mapping[str, Tuple[Step, ...]]
    streams: Mapping[int, Stream]
    start: int
    signature: Optional[bytes] = None

    @property
    def target_bytes(self) -> int:
        """Size of the new bundle in bytes."""
        return sum(step.length for steps in self.files.values() for step in steps)


def is_delta(path: PathLike) -> bool:
    """Return whether the file begins like a delta."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_delta(path: PathLike) -> Delta:
    """Return what a delta says, after checking the hash of the whole file.

    Raises:
        BundleError: not a delta, damaged, cut short, or of a newer schema.
        OSError: the file cannot be read.
    """
    path = Path(path)
    with open(path, "rb") as file:
        prefix = file.read(PREFIX_BYTES)
        if len(prefix) < PREFIX_BYTES or not prefix.startswith(MAGIC):
            raise BundleError(f"{path}: not a delta")
        digest = sha256()
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
        if digest.digest() != prefix[12:]:
            raise BundleError(
                f"{path}: SHA-256 does not match: damaged or cut short", hint="copy the delta again"
            )
        length = int.from_bytes(prefix[8:12], "little")
        if length > MAX_HEADER_BYTES:
            raise BundleError(f"{path}: the header claims {length} bytes")
        file.seek(PREFIX_BYTES)
        packed = file.read(length)
        end = file.seek(0, os.SEEK_END)
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(packed, MAX_HEADER_BYTES)
        if not unpacker.eof:
            raise ValueError("it is too long or incomplete")
        delta = _delta(path, decode_json(text), PREFIX_BYTES + length)
    except (zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BundleError(f"{path}: the header cannot be read: {reason}") from None
    if delta.start + sum(stream.bytes for stream in delta.streams.values()) != end:
        raise BundleError(f"{path}: the streams do not end where the file ends")
    return delta


def _delta(path: Path, header: Any, start: int) -> Delta:
    if whole_number(header["schema"]) > SCHEMA:
        raise BundleError(
            f"{path}: has schema {header['schema']}, this runtime reads up to {SCHEMA}",
            hint="pip install --upgrade edgecil-runtime",
        )
    source, target = (Revision.from_json(header[end]) for end in ("from", "to"))
    files = {check_file_name(name): _steps(flat) for name, flat in header["files"].items()}
    if MANIFEST not in files:
        raise ValueError(f"{MANIFEST} is missing")
    stored = [Stream(_codec(codec), whole_number(size)) for codec, size in header["streams"]]
    if len(stored) != len(STREAMS):
        raise ValueError(f"{len(stored)} streams")
    streams = {kind: stored[i] for i, kind in enumerate(STREAMS)}
    return Delta(path, source, target, files, streams, start, _signature(header.get("signature")))


def _signature(value: Any) -> Optional[bytes]:
    if value is None:
        return None
    signature = bytes.fromhex(value)
    if len(signature) != SIGNATURE_BYTES:
        raise ValueError(f"a signature of {len(signature)} bytes")
    return signature


def _codec(value: Any) -> str:
    if value not in ("zlib", "xz", "stored"):
        raise ValueError(f"unknown codec {value!r}")
    return str(value)


def _steps(flat: List[Any]) -> Tuple[Step, ...]:
    if len(flat) % 3:
        raise ValueError("steps are not triples")
    numbers = [whole_number(value) for value in flat]
    steps = tuple(Step(*numbers[i : i + 3]) for i in range(0, len(numbers), 3))
    for step in steps:
        if step.kind > ADD_WORDS or (step.kind == ADD_WORDS and step.length % 4):
            raise ValueError(f"unknown step {tuple(step)}")
    return steps


def encode_header(delta: Delta) -> bytes:
    """Return the header of a delta as it is stored."""
    header: Dict[str, Any] = {
        "schema": SCHEMA,
        "from": delta.source._asdict(),
        "to": delta.target._asdict(),
        "streams": [delta.streams[kind] for kind in STREAMS],
        "files": {n: [x for step in steps for x in step] for n, steps in delta.files.items()},
    }
    if delta.signature is not None:
        header["signature"] = delta.signature.hex()
    return zlib.compress(json.dumps(header, separators=(",", ":")).encode(), 9)


def apply_delta(delta: Delta, base: PathLike, target: PathLike) -> None:
    """Write the files of the new bundle into the existing folder ``target``.

    ``base`` is the folder of the bundle that the delta was made from. The manifest's hash is
    checked at the end; whoever calls this opens the bundle, which checks the rest.

    Raises:
        BundleError: the base is another one, or the delta does not give what it promises.
        OSError: the disk is full or cannot be read or written.
    """
    check_base(delta, base)
    with ExitStack() as stack:
        sources, start = {}, delta.start
        for kind, stream in delta.streams.items():
            file = stack.enter_context(open(delta.path, "rb"))
            file.seek(start)
            sources[kind] = _Source(delta.path, file, stream)
            start += stream.bytes
        for name, steps in delta.files.items():
            with open(Path(target, name), "wb") as out:
                _write_file(delta, Path(base, name), steps, sources, out)
    if delta.signature is not None:
        Path(target, SIGNATURE).write_bytes(delta.signature)
    if manifest_sha256(target) != delta.target.manifest_sha256:
        raise BundleError(f"{delta.path}: does not give the manifest that it promises")


def check_base(delta: Delta, base: PathLike) -> None:
    """Do nothing when ``base`` is the bundle that the delta was made from.

    Raises:
        BundleError: it is another one.
    """
    if manifest_sha256(base) != delta.source.manifest_sha256:
        raise BundleError(
            f"{delta.path}: made for another {delta.source.folder} than the one in {base}",
            hint="install the full bundle",
        )


def _write_file(
    delta: Delta,
    base: Path,
    steps: Tuple[Step, ...],
    sources: Mapping[int, _Source],
    out: BinaryIO,
) -> None:
    with open(base if base.exists() else os.devnull, "rb") as old:
        for step in steps:
            old.seek(step.offset)
            for done in range(0, step.length, CHUNK):
                count = min(CHUNK, step.length - done)
                change = b"" if step.kind == COPY else sources[step.kind].read(count)
                before = b"" if step.kind == LITERAL else old.read(count)
                if step.kind != LITERAL and len(before) != count:
                    raise BundleError(f"{delta.path}: reads beyond the end of {base}")
                out.write(_combined(step.kind, before, change))


def _combined(kind: int, before: bytes, change: bytes) -> bytes:
    if kind in (LITERAL, COPY):
        return before or change
    if kind == ADD_BYTES:
        return (np.frombuffer(before, np.uint8) + np.frombuffer(change, np.uint8)).tobytes()
    words = np.frombuffer(change, np.uint8).reshape(4, -1).T.copy().view("<u4").ravel()
    result: bytes = (np.frombuffer(before, "<u4") + words).astype("<u4").tobytes()
    return result


class _Source:
    """One stream of a delta, decoded piece by piece."""

    def __init__(self, path: Path, file: BinaryIO, stream: Stream) -> None:
        self._path = path
        self._file = file
        self._left = stream.bytes
        self._ready = b""
        self._decoder, self._damage = _decoder(stream.codec, path)

    def read(self, count: int) -> bytes:
        """Return the next ``count`` bytes.

        Raises:
            BundleError: the stream is damaged or ends before.
        """
        while len(self._ready) < count:
            packed = b""
            if self._decoder.needs_input:
                packed = self._file.read(min(CHUNK, self._left))
                self._left -= len(packed)
            try:
                more = self._decoder.decompress(packed, CHUNK)
            except (EOFError, self._damage) as error:
                raise BundleError(f"{self._path}: a stream is damaged: {error}") from None
            if not packed and not more:
                raise BundleError(f"{self._path}: a stream ends too early")
            self._ready += more
        data, self._ready = self._ready[:count], self._ready[count:]
        return data


def _decoder(codec: str, path: Path) -> Tuple[Any, Type[Exception]]:
    """Return a decoder with the interface of ``lzma``'s, and what it raises for bad data."""
    if codec == "stored":
        return _Stored(), zlib.error
    if codec == "zlib":
        return _Inflate(), zlib.error
    try:
        import lzma
    except ImportError:  # left out of some small builds of Python
        raise BundleError(
            f"{path}: this Python cannot read xz: it has no module lzma",
            hint="install the full bundle",
        ) from None
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=DECODER_BYTES), lzma.LZMAError


class _Stored:
    needs_input = True

    def decompress(self, data: bytes, most: int) -> bytes:
        return data


class _Inflate:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj()

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, most: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, most)
