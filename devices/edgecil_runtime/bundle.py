"""A bundle: the folder ``<name>-v<n>/`` that a device installs, written and verified here.

    manifest.json    what the model is, and size and SHA-256 of the files below
    model.onnx       uint8 image in, scores out; preprocessing and classification rule inside
    selftest.npz     images uint8 (n, H, W, 3), scores float32 (n, C), tolerance float32
    manifest.sig     only when it was signed: see signatures.py, which alone reads it

onnxruntime loads a model with flipped bits without complaint, so nothing is used before its
hash was checked.
"""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, NamedTuple

import numpy as np

from edgecil_runtime.container import sync_directory
from edgecil_runtime.errors import BundleError, InputError
from edgecil_runtime.hashing import sha256
from edgecil_runtime.images import PathLike
from edgecil_runtime.manifest import (
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    check_file_name,
    decode_manifest,
    sealed,
)
from edgecil_runtime.model_file import check_model_file
from edgecil_runtime.plain_files import Stamp, open_plain, read_plain_file, stamp_of

if TYPE_CHECKING:
    import zipfile

    from numpy.typing import NDArray

MANIFEST = "manifest.json"
MODEL = "model.onnx"
SELFTEST = "selftest.npz"
REQUIRED = (MODEL, SELFTEST)

_CHUNK = 1 << 20
_MAX_SELFTEST_FILE_BYTES = 64_000_000
_MAX_SELFTEST_BYTES = 64_000_000  # of one array, unpacked
_MAX_ENTRIES = 16
_SELFTEST_ARRAYS = {"images": "|u1", "scores": "<f4", "tolerance": "<f4"}


class Bundle(NamedTuple):
    """A bundle whose files have been verified, and the state they were in then."""

    path: Path
    manifest: Manifest
    stamps: Mapping[str, Stamp]

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.path / MODEL


class SelfTest(NamedTuple):
    """Known images and what the model must answer.

    ``images`` is uint8 ``(n, H, W, 3)``, ``scores`` float32 ``(n, C)``; a device passes when no
    score differs by more than ``tolerance``.
    """

    images: NDArray[np.uint8]
    scores: NDArray[np.float32]
    tolerance: float


def open_bundle(path: PathLike) -> Bundle:
    """Return the bundle in the folder ``path`` after checking size and SHA-256 of every file.

    Files that the manifest does not list are never opened. A link to the folder is followed
    once, so that switching it to another bundle meanwhile does no harm.

    Raises:
        InputError: there is no such folder, or it is no bundle.
        BundleError: the manifest is wrong, a file is missing, a link, or not as recorded, or
            the model holds more than a classifier needs (see :mod:`~.model_file`).
    """
    if not os.path.isdir(path):
        raise InputError(f"{os.fspath(path)}: no such bundle folder")
    root = Path(os.path.realpath(path))
    if not os.path.lexists(root / MANIFEST):
        raise InputError(
            f"{root}: not a bundle: it holds no {MANIFEST}",
            hint="give the <name>-v<n> folder that 'edgecil export' wrote",
        )
    try:
        manifest = decode_manifest(read_plain_file(root / MANIFEST, MAX_MANIFEST_BYTES))
    except BundleError as error:
        shown = error.message if str(root) in error.message else f"{root}: {error.message}"
        raise BundleError(shown, hint=error.hint) from None
    for name in REQUIRED:
        if name not in manifest.files:
            raise BundleError(f"{root}: manifest.json does not list {name}")
    stamps = {name: _verify(root / name, entry) for name, entry in manifest.files.items()}
    _check_model(root / MODEL, manifest)
    return Bundle(root, manifest, stamps)


def check_unchanged(bundle: Bundle) -> None:
    """Make sure that no file was replaced or written to since the bundle was verified.

    onnxruntime opens the model by its name, after the check of its hash: call this once it has.

    Raises:
        BundleError: a file is another one now, or was written to.
    """
    for name, stamp in bundle.stamps.items():
        with open_plain(bundle.path / name) as (_, status):
            if stamp_of(status) != stamp:
                raise BundleError(
                    f"{bundle.path / name}: changed while it was being loaded",
                    hint="write updates to a new folder; start again",
                )


def _verify(path: Path, entry: FileEntry) -> Stamp:
    digest = sha256()
    with open_plain(path) as (file, status):
        if status.st_size != entry.bytes:
            raise BundleError(
                f"{path}: expected {entry.bytes} bytes, got {status.st_size}",
                hint="copy the bundle again",
            )
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    _check_hash(path, entry, digest.hexdigest())
    return stamp_of(status)


def _check_hash(path: Path, entry: FileEntry, found: str) -> None:
    if found != entry.sha256:
        raise BundleError(
            f"{path}: SHA-256 does not match: expected {entry.sha256[:12]}..., got {found[:12]}...",
            hint="the file was damaged or changed; copy the bundle again",
        )


def _check_model(path: Path, manifest: Manifest) -> None:
    with open_plain(path) as (file, status):
        found = check_model_file(file.fileno(), status.st_size, str(path))
    needs = manifest.requires
    if found.ir > needs.ir or found.opset > needs.opset:
        raise BundleError(
            f"{path}: asks for IR {found.ir} and opset {found.opset}, "
            f"its manifest says IR {needs.ir} and opset {needs.opset}"
        )


def write_bundle(
    directory: PathLike, manifest: Mapping[str, Any], files: Mapping[str, bytes]
) -> Path:
    """Write ``<directory>/<name>-v<version>/`` and return its path.

    ``manifest`` is the JSON object of a :class:`Manifest` without ``files``, which are added
    here. Everything goes to a temporary folder beside it, is flushed to the disk, and gets its
    name last: a bundle is there whole or not at all.

    Raises:
        BundleError: the manifest or a file name is wrong.
        InputError: a bundle of that name is there already.
        OSError: the disk is full or not writable; nothing stays behind.
    """
    import shutil

    for name in files:
        check_file_name(name)
    missing = [name for name in REQUIRED if name not in files]
    if missing or MANIFEST in files:
        raise BundleError(f"a bundle needs {' and '.join(REQUIRED)}, got {sorted(files)}")
    entries = {n: FileEntry(sha256(b).hexdigest(), len(b)) for n, b in files.items()}
    listed = {name: entry._asdict() for name, entry in entries.items()}
    whole = sealed({**manifest, "files": listed})
    checked = decode_manifest(json.dumps(whole).encode())
    text = json.dumps(whole, ensure_ascii=False, indent=1) + "\n"
    target = Path(directory) / checked.directory_name
    if target.exists():
        raise InputError(f"{target}: a bundle of this name is there already")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had our number
    try:
        temporary.mkdir(parents=True)
        for name, data in {**files, MANIFEST: text.encode()}.items():
            _write_synced(temporary / name, data)
        sync_directory(temporary)
        temporary.rename(target)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
    sync_directory(target.parent)
    return target


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def encode_selftest(test: SelfTest) -> bytes:
    """Return the content of ``selftest.npz``."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=np.asarray(test.images, np.uint8),
        scores=np.asarray(test.scores, np.float32),
        tolerance=np.float32(test.tolerance),
    )
    return buffer.getvalue()


def read_selftest(bundle: Bundle) -> SelfTest:
    """Return the self-test of a bundle, decoded from bytes whose hash was checked again.

    Raises:
        BundleError: the file is not an archive of the three arrays, or they do not fit the labels.
    """
    path = bundle.path / SELFTEST
    data = read_plain_file(path, _MAX_SELFTEST_FILE_BYTES)
    _check_hash(path, bundle.manifest.files[SELFTEST], sha256(data).hexdigest())
    try:
        arrays = _arrays(data)
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen unrelated types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BundleError(f"{path}: not a self-test: {reason}") from None
    images, scores, tolerance = arrays["images"], arrays["scores"], arrays["tolerance"]
    count = images.shape[0] if images.ndim == 4 else 0
    good = images.ndim == 4 and images.shape[3] == 3 and np.isfinite(scores).all()
    good = good and scores.shape == (count, len(bundle.manifest.labels)) and count > 0
    if not good or tolerance.shape != () or not 0 <= float(tolerance) < np.inf:
        shapes = {name: (str(a.dtype), a.shape) for name, a in arrays.items()}
        raise BundleError(f"{path}: arrays do not fit the model: {shapes}")
    return SelfTest(images, scores, float(tolerance))


def _arrays(data: bytes) -> Dict[str, NDArray[Any]]:
    import zipfile

    # Every entry of a zip's directory becomes an object of half a kilobyte.
    if data.count(b"PK\x01\x02") > _MAX_ENTRIES:
        raise ValueError("too many entries")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = sorted(archive.namelist())
        if names != sorted(f"{name}.npy" for name in _SELFTEST_ARRAYS):
            raise ValueError(f"expected {', '.join(_SELFTEST_ARRAYS)}, got {names}")
        return {name: _array(archive, name) for name in _SELFTEST_ARRAYS}


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    # Both the zip directory and the array's header claim a size: believe neither unchecked.
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > _MAX_SELFTEST_BYTES:
        raise ValueError(f"{name} unpacks to {info.file_size} bytes")
    with archive.open(info) as file:
        content = file.read(_MAX_SELFTEST_BYTES + 1)
    header = io.BytesIO(content)
    if np.lib.format.read_magic(header) != (1, 0):
        raise ValueError(f"{name} has an unknown array format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
    wanted = np.dtype(_SELFTEST_ARRAYS[name])
    if dtype != wanted or fortran:
        raise ValueError(f"{name} is {dtype}, expected {wanted}")
    size = math.prod(shape) * wanted.itemsize
    if any(side < 0 for side in shape) or size != len(content) - header.tell():
        raise ValueError(f"{name} claims shape {shape}")
    return np.frombuffer(content, wanted, offset=header.tell()).reshape(shape)
