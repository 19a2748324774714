"""Writing a delta between two bundles; ``edgecil_runtime.delta`` reads it and has the format."""

from __future__ import annotations

import lzma
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecil.errors import EdgecilError, UsageError, VerificationError
from edgecil.exporting.matching import file_steps
from edgecil_runtime.bundle import MANIFEST, Bundle, open_bundle
from edgecil_runtime.container import write_atomic
from edgecil_runtime.delta import (
    ADD_BYTES,
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
_DICTIONARY_BYTES = 1 << 20  # of xz: what the device needs to decode


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
