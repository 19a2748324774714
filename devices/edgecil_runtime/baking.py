"""A model baked for the onnxruntime and CPU that are here: quicker to load, smaller in memory.

    baked.json      what it was made from and for, and size and SHA-256 of the files below
    model.onnx      the graph after all of onnxruntime's optimisations
    weights.bin     its weights, which onnxruntime maps instead of copying

Optimising a graph at load time holds several copies of the weights for a moment. Done once, in
a child process, it costs nothing later: the baked graph is loaded as it is. It is only right
for the onnxruntime and the instruction set that made it, so the portable file stays, and is
what a bundle's hashes speak of. The folder ``baked`` lies beside the folder of the bundle.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Tuple, Union

from edgecil_runtime.bundle import MODEL, Bundle, open_bundle
from edgecil_runtime.container import sync_directory
from edgecil_runtime.cpu import instruction_sets
from edgecil_runtime.errors import BundleError, RuntimeFault
from edgecil_runtime.hashing import sha256
from edgecil_runtime.images import PathLike
from edgecil_runtime.plain_files import open_plain, read_plain_file
from edgecil_runtime.strict_json import decode_json

FOLDER = "baked"
RECORD = "baked.json"
WEIGHTS = "weights.bin"
BAKING_SECONDS = 120.0
"""A child that takes longer has failed; a large model on a slow board needs some 20 s."""
_SCHEMA = 1
_MAX_RECORD_BYTES = 100_000
_CHUNK = 1 << 20


class BakedInfo(NamedTuple):
    """A baked model: its folder, and the onnxruntime and instruction sets it was made for.

    ``model_sha256`` is that of the portable model, ``bytes`` the size of the baked files.
    """

    folder: Path
    onnxruntime: str
    isa: Tuple[str, ...]
    model_sha256: str
    bytes: int

    @property
    def model_path(self) -> Path:
        """The baked ONNX file."""
        return self.folder / MODEL


def bake(
    bundle_folder: PathLike, cache_folder: PathLike, deadline: float = BAKING_SECONDS
) -> BakedInfo:
    """Return what was baked from a bundle into ``cache_folder``, which is replaced.

    A child process does it, so that neither a crash of onnxruntime nor the memory that it takes
    touches the caller. The folder is there whole or not at all.

    Raises:
        BundleError: the bundle is damaged, or onnxruntime cannot optimise its model in
            ``deadline`` seconds.
        InputError: there is no bundle.
        OSError: the disk is full or not writable.
    """
    import shutil

    bundle = open_bundle(bundle_folder)
    target = Path(os.path.abspath(cache_folder))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had our number
    try:
        temporary.mkdir(parents=True)
        version = _in_child(bundle, temporary, deadline)
        _record(bundle, temporary, version)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_directory(target.parent)
    found = find(bundle, target)
    if isinstance(found, str):  # such as a record that a full disk cut short
        raise BundleError(f"{target}: baked, but not usable: {found}")
    return found


def _in_child(bundle: Bundle, folder: Path, deadline: float) -> str:
    """Return the version of the onnxruntime that wrote model and weights into ``folder``."""
    import subprocess  # here, because an app that only predicts needs none of this

    from edgecil_runtime.spawn import last_words, run_child

    module = "edgecil_runtime.baking_worker"
    try:
        done = run_child(module, str(bundle.model_path), str(folder), WEIGHTS, deadline=deadline)
    except subprocess.TimeoutExpired:
        raise BundleError(f"{bundle.model_path}: not baked in {deadline:g} s") from None
    if done.returncode:
        reason = last_words(done.returncode, done.stderr)
        raise BundleError(f"{bundle.model_path}: cannot be baked: {reason}")
    return done.stdout.decode("ascii").strip()


def _record(bundle: Bundle, folder: Path, version: str) -> None:
    files = {name: _entry(folder / name) for name in sorted(os.listdir(folder))}
    record = {
        "schema": _SCHEMA,
        "onnxruntime": version,
        "isa": instruction_sets(),
        "model_sha256": bundle.manifest.files[MODEL].sha256,
        "files": files,
    }
    for name in files:
        _sync(folder / name)
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    _sync(folder / RECORD)
    sync_directory(folder)


def _entry(path: Path) -> Dict[str, Any]:
    digest = sha256()
    with open_plain(path) as (file, status):
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    return {"sha256": digest.hexdigest(), "bytes": status.st_size}


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def find(bundle: Bundle, folder: Optional[PathLike] = None) -> Union[BakedInfo, str]:
    """Return the model baked from ``bundle``, or why there is none to use.

    ``folder`` defaults to ``baked`` beside the bundle. Size and SHA-256 of its files are checked.
    """
    place = bundle.path.parent / FOLDER if folder is None else Path(folder)
    if not (place / RECORD).is_file():
        return "nothing is baked"
    try:
        record = decode_json(read_plain_file(place / RECORD, _MAX_RECORD_BYTES))
        if record["schema"] != _SCHEMA:
            return f"{place / RECORD} has schema {record['schema']!r}"
        info = BakedInfo(
            place,
            str(record["onnxruntime"]),
            tuple(record["isa"]),
            str(record["model_sha256"]),
            sum(entry["bytes"] for entry in record["files"].values()),
        )
        return _unfit(info, bundle) or _damaged(place, record["files"]) or info
    except (RuntimeFault, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{place / RECORD} is damaged: {' '.join(str(error).split())[:200]}"


def usable(bundle_folder: PathLike, folder: Optional[PathLike] = None) -> Union[Path, str]:
    """Return the path of the baked ONNX file of a bundle, or in words why none can be used.

    Raises:
        BundleError: the bundle itself is damaged.
        InputError: there is no bundle.
    """
    found = find(open_bundle(bundle_folder), folder)
    return found if isinstance(found, str) else found.model_path


def _unfit(info: BakedInfo, bundle: Bundle) -> Optional[str]:
    from edgecil_runtime.session import load_onnxruntime

    version = load_onnxruntime().__version__
    if info.model_sha256 != bundle.manifest.files[MODEL].sha256:
        return "baked from another model"
    if info.onnxruntime != version:
        return f"baked for onnxruntime {info.onnxruntime}, this is {version}"
    if list(info.isa) != instruction_sets():
        return f"baked for another CPU ({' '.join(info.isa)})"
    return None


def _damaged(place: Path, files: Dict[str, Any]) -> Optional[str]:
    if MODEL not in files or not set(files) <= {MODEL, WEIGHTS}:
        return f"baked files are {sorted(files)}"
    for name, entry in files.items():
        if _entry(place / name) != entry:
            return f"{place / name} is damaged"
    return None
