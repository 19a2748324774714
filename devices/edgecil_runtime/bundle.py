"""A bundle: the folder ``<name>-v<n>/`` that a device installs, written and verified here.

    manifest.json    what the model is, and size and SHA-256 of the files below
    model.onnx       uint8 image in, scores out; preprocessing and classification rule inside
    selftest.npz     images uint8 (n, H, W, 3), scores float32 (n, C), tolerance float32

onnxruntime loads a model with flipped bits without complaint, so nothing is used before its
hash was checked.
"""

from __future__ import annotations

import io
import json
import math
import os
import stat
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, NamedTuple

import numpy as np

from edgecil_runtime.container import sync_directory
from edgecil_runtime.errors import BundleError, InputError
from edgecil_runtime.images import PathLike
from edgecil_runtime.manifest import (
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    check_file_name,
    decode_manifest,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANIFEST = "manifest.json"
MODEL = "model.onnx"
SELFTEST = "selftest.npz"
REQUIRED = (MODEL, SELFTEST)

_CHUNK = 1 << 20
_MAX_SELFTEST_BYTES = 64_000_000  # of one array, unpacked


class Bundle(NamedTuple):
    """A bundle whose files have been verified."""

    path: Path
    manifest: Manifest

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

    Raises:
        InputError: there is no such folder, or it is no bundle.
        BundleError: the manifest is wrong, a file is missing, a link, or not as recorded.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"{root}: no such bundle folder")
    if not os.path.lexists(root / MANIFEST):
        raise InputError(
            f"{root}: not a bundle: it holds no {MANIFEST}",
            hint="give the <name>-v<n> folder that 'edgecil export' wrote",
        )
    size = _plain_file(root / MANIFEST)
    if size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{root / MANIFEST}: {size} bytes, at most {MAX_MANIFEST_BYTES} allowed")
    try:
        manifest = decode_manifest((root / MANIFEST).read_bytes())
    except BundleError as error:
        raise BundleError(f"{root}: {error.message}", hint=error.hint) from None
    for name in REQUIRED:
        if name not in manifest.files:
            raise BundleError(f"{root}: manifest.json does not list {name}")
    for name, entry in manifest.files.items():
        _verify(root / name, entry)
    return Bundle(root, manifest)


def _plain_file(path: Path) -> int:
    try:
        status = path.lstat()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
    if stat.S_ISLNK(status.st_mode):
        raise BundleError(f"{path}: is a symbolic link; a bundle holds plain files only")
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: is not a plain file")
    return status.st_size


def sha256(data: bytes = b"") -> Any:
    """Return a SHA-256 object of hashlib's kind that has taken ``data``."""
    # Python's own code first: hashlib would load OpenSSL, 4 MB of a small board's memory.
    for name in ("_sha2", "_sha256", "hashlib"):  # from Python 3.12, until 3.11, elsewhere
        try:
            return import_module(name).sha256(data)
        except (ImportError, AttributeError):
            continue
    raise BundleError("this Python has no SHA-256")


def _verify(path: Path, entry: FileEntry) -> None:
    size = _plain_file(path)
    if size != entry.bytes:
        raise BundleError(
            f"{path}: expected {entry.bytes} bytes, got {size}", hint="copy the bundle again"
        )
    digest = sha256()
    try:
        with open(path, "rb") as file:
            for chunk in iter(lambda: file.read(_CHUNK), b""):
                digest.update(chunk)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
    if digest.hexdigest() != entry.sha256:
        raise BundleError(
            f"{path}: SHA-256 does not match: expected {entry.sha256[:12]}..., "
            f"got {digest.hexdigest()[:12]}...",
            hint="the file was damaged or changed; copy the bundle again",
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
    whole = {**manifest, "files": listed}
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
    """Return the self-test of a bundle.

    Raises:
        BundleError: the file is not an archive of the three arrays, or they do not fit the labels.
    """
    import zipfile

    path = bundle.path / SELFTEST
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: _array(archive, name) for name in ("images", "scores", "tolerance")}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: not a self-test: {' '.join(str(error).split())}") from None
    images, scores, tolerance = arrays["images"], arrays["scores"], arrays["tolerance"]
    count = images.shape[0] if images.ndim == 4 else 0
    good = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
    good = good and scores.dtype == np.float32 and np.isfinite(scores).all()
    good = good and scores.shape == (count, len(bundle.manifest.labels)) and count > 0
    if not good or tolerance.shape != () or not 0 <= float(tolerance) < np.inf:
        shapes = {name: (str(a.dtype), a.shape) for name, a in arrays.items()}
        raise BundleError(f"{path}: arrays do not fit the model: {shapes}")
    return SelfTest(images, scores, float(tolerance))


def _array(archive: Any, name: str) -> NDArray[Any]:
    # Both the zip directory and the array's header claim a size: believe neither unchecked.
    info = archive.zip.getinfo(f"{name}.npy")
    if info.file_size > _MAX_SELFTEST_BYTES:
        raise ValueError(f"{name} unpacks to {info.file_size} bytes")
    with archive.zip.open(info) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} has an unknown array format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if math.prod(shape) * dtype.itemsize > info.file_size:
        raise ValueError(f"{name} claims shape {shape}")
    result: NDArray[Any] = archive[name]
    return result
