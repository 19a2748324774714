"""Installing a bundle or a delta: verify, write, bake, self-test, switch.

Whatever fails before the switch leaves the current model as it was. The switch is the
replacement of one small file, after everything in the slot was flushed to the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Union

from edgecil_runtime.baking import FOLDER as BAKED
from edgecil_runtime.baking import bake
from edgecil_runtime.bundle import MANIFEST, Bundle, open_bundle
from edgecil_runtime.container import sync_directory
from edgecil_runtime.delta import apply_delta, is_delta, read_delta
from edgecil_runtime.errors import BundleError, InputError, MemoryLimitError, UpdateError
from edgecil_runtime.images import PathLike
from edgecil_runtime.memory import format_size
from edgecil_runtime.revision import Revision
from edgecil_runtime.signatures import (
    SHOWN_DIGITS,
    SIGNATURE,
    PublicKey,
    check_signature,
    check_signed,
    load_public_key,
    read_signature,
)
from edgecil_runtime.slots import Slots, State
from edgecil_runtime.spawn import last_words, run_child

SELFTEST_SECONDS = 120.0
"""A self-test that takes longer has failed; a slow board with a large model needs some 20 s."""
_SLACK_BYTES = 1_000_000  # for folders, the state and rounding up to blocks

Say = Callable[[str], None]


class Package(NamedTuple):
    """What is to be installed. ``labels`` are None when only writing it will tell."""

    revision: Revision
    bytes: int
    labels: Optional[List[str]]
    write: Callable[[Path], None]


class Report(NamedTuple):
    """A finished install: what is current now, what it replaced, and whether it is on trial."""

    revision: Revision
    path: Path
    replaced: Optional[Revision]
    trial: bool
    changed: bool
    """False when exactly this was installed already."""


def install(
    source: PathLike,
    root: Optional[PathLike] = None,
    *,
    trial: bool = False,
    force: bool = False,
    require_signature: Optional[PathLike] = None,
    memory_limit: Union[str, int, None] = None,
    deadline: float = SELFTEST_SECONDS,
    say: Say = lambda text: None,
) -> Report:
    """Return the report of installing a bundle folder or a delta file into ``root``.

    On ``trial`` the version must be committed, or the previous one is used again after
    some starts. ``force`` allows an older version or another model; hashes and the self-test
    are never left out. With ``require_signature``, the file of a public key, nothing that its
    owner did not sign is even looked into. The self-test runs in a process of its own that has
    ``deadline`` seconds and at most ``memory_limit`` of memory. ``say`` is told what was done.

    Raises:
        UpdateError: not now, not this one without ``force``, or too little space.
        BundleError: damaged, not signed as required, made for another base, or the self-test
            failed.
        MemoryLimitError: the model does not fit ``memory_limit``.
        InputError: there is neither a bundle nor a delta, or no public key.
        RuntimeMissing: a signature is required and ``cryptography`` not installed.
        OSError: the disk is full or cannot be written.
    """
    key = None if require_signature is None else load_public_key(require_signature)
    slots = Slots(root)
    slots.root.mkdir(parents=True, exist_ok=True)
    with slots.locked():
        state = slots.state()
        package = _package(Path(source), slots, state, key)
        if _is_current(package, slots, state):
            return Report(package.revision, slots.current_path(), None, state.trial, False)
        _check_successor(package, slots, state, force)
        _check_space(package, slots, state)
        signed = "" if key is None else f", signed by key {key.fingerprint[:SHOWN_DIGITS]}"
        say(f"verified {package.revision.folder}, {format_size(package.bytes)}{signed}")
        old, state = state, state.without_spare()
        if old != state:
            slots.write(state)
        folder = slots.clear_spare(state)
        try:
            path = _fill(folder, package, key)
            _bake(path, say)
            _selftest(path, memory_limit, deadline)
            say("self-test passed")
            _sync(folder)
        except BaseException as error:
            _abandon(slots, state, folder, package.revision, error)
            raise
        state = state.switched(package.revision, trial)
        slots.write(state)
        return Report(package.revision, path, old.revision, state.trial, True)


def _package(source: Path, slots: Slots, state: State, key: Optional[PublicKey]) -> Package:
    if source.is_dir():
        if key is not None:
            check_signed(source, key)
        bundle = open_bundle(source)
        labels = [label.name for label in bundle.manifest.labels]
        size = sum(entry.bytes for entry in bundle.manifest.files.values())
        revision = Revision.of(source, bundle.manifest)
        return Package(revision, size, labels, partial(_copy, bundle, read_signature(source)))
    if not source.is_file() or not is_delta(source):
        raise InputError(
            f"{source}: neither a bundle nor a delta",
            hint="give the folder or the .delta file that 'edgecil export' wrote",
        )
    delta = read_delta(source)
    if key is not None:
        check_signature(delta.signature, delta.target.manifest_sha256, key, source)
    if state.revision == delta.target:
        return Package(delta.target, 0, None, lambda folder: None)
    if state.current is None or state.revision is None:
        raise UpdateError(
            f"{source}: a delta changes {delta.source.folder}, and nothing is installed",
            hint="install the full bundle",
        )
    slots.verified(state.current, state.revision)
    base = slots.bundle_path(state.current, state.revision)
    if state.revision != delta.source:
        raise UpdateError(
            f"{source}: a delta changes {delta.source.folder}, installed is "
            f"{'another ' * (state.revision.folder == delta.source.folder)}{state.revision.folder}",
            hint="install the full bundle",
        )
    return Package(delta.target, delta.target_bytes, None, partial(apply_delta, delta, base))


def _copy(bundle: Bundle, signature: Optional[bytes], folder: Path) -> None:
    for name in (MANIFEST, *bundle.manifest.files):
        shutil.copyfile(bundle.path / name, folder / name)
    if signature is not None:
        (folder / SIGNATURE).write_bytes(signature)


def _is_current(package: Package, slots: Slots, state: State) -> bool:
    """Return whether exactly this is installed, and not damaged since."""
    if state.current is None or state.revision != package.revision:
        return False
    try:
        slots.verified(state.current, package.revision)
    except BundleError:
        return False
    return True


def _check_successor(package: Package, slots: Slots, state: State, force: bool) -> None:
    """Refuse what would surprise: a lost trial, an older version, another model's classes."""
    if state.current is None or state.revision is None:
        return
    installed, new = state.revision.folder, package.revision.folder
    if state.trial:
        raise UpdateError(
            f"{installed} is on trial: installing {new} now would leave no proven version",
            hint=f"edgecil-device commit --root {slots.root}   (or rollback), then install",
        )
    if force:
        return
    problem = ""
    if package.revision.name != state.revision.name:
        problem = "is another model"
    elif package.revision.version < state.revision.version:
        problem = "is older"
    elif package.labels is not None:
        try:
            known = slots.verified(state.current, state.revision).manifest.labels
        except BundleError:
            return  # the installed one is damaged: anything is better
        lost = [label.name for label in known if label.name not in set(package.labels)]
        if lost:
            problem = f"lacks {len(lost)} of its classes, such as {lost[0]!r}"
    if problem:
        raise UpdateError(
            f"{installed} is installed, and {new} {problem}",
            hint="install it all the same with --force",
        )


def _check_space(package: Package, slots: Slots, state: State) -> None:
    needed = 2 * package.bytes + _SLACK_BYTES  # the bundle, and as much again when it is baked
    spare = slots.root / state.spare
    freed = sum(f.stat().st_size for f in spare.rglob("*") if f.is_file())
    free = shutil.disk_usage(slots.root).free + freed
    if free < needed:
        raise UpdateError(
            f"{slots.root}: {package.revision.folder} needs {format_size(needed)}, "
            f"{format_size(free)} are free; nothing was written",
            hint="make room on the disk and try again",
        )


def _fill(folder: Path, package: Package, key: Optional[PublicKey]) -> Path:
    """Return the bundle in the empty slot ``folder``, complete and checked."""
    path = folder / package.revision.folder
    path.mkdir()
    package.write(path)
    if key is not None:  # once more: the source may be another one than a moment ago
        check_signed(path, key)
    bundle = open_bundle(path)
    # Name and version, too: a delta must not announce an old, once signed bundle as a new one.
    if Revision.of(path, bundle.manifest) != package.revision:
        raise BundleError(
            f"{path}: is not the bundle that was announced; was it changed while it was copied?",
            hint="copy it again",
        )
    return path


def _bake(bundle: Path, say: Say) -> None:
    try:
        bake(bundle, bundle.parent / BAKED)
    except BundleError as fault:  # the portable model does as well; the self-test will tell
        say(f"not baked: {fault.message}")
    else:
        say("baked for this onnxruntime and CPU")


def _selftest(bundle: Path, memory_limit: Union[str, int, None], deadline: float) -> None:
    """Do nothing when the bundle passes its self-test in a process of its own."""
    arguments = ["selftest", str(bundle.absolute()), "--json"]
    arguments += [] if memory_limit is None else ["--memory-limit", str(memory_limit)]
    try:
        done = run_child("edgecil_runtime", *arguments, deadline=deadline)
    except subprocess.TimeoutExpired:
        raise BundleError(f"{bundle.name}: self-test: no answer in {deadline:g} s") from None
    if done.returncode:
        _raise_failed(bundle.name, done)


def _raise_failed(name: str, done: subprocess.CompletedProcess[bytes]) -> None:
    try:
        error: Dict[str, Any] = json.loads(done.stdout)["error"]
    except (ValueError, KeyError):
        reason = last_words(done.returncode, done.stderr)
        raise BundleError(f"{name}: self-test: {reason}") from None
    fault = MemoryLimitError if error["code"] == MemoryLimitError.code else BundleError
    raise fault(f"{name}: self-test: {error['message']}", hint=error["hint"])


def _sync(folder: Path) -> None:
    """Flush everything in a slot, and the slot's own name, to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        else:
            sync_directory(path)
    sync_directory(folder)
    sync_directory(folder.parent)


def _abandon(
    slots: Slots, state: State, folder: Path, revision: Revision, error: BaseException
) -> None:
    """Remove a half-written slot and note why; when even that fails, the next install does."""
    try:
        shutil.rmtree(folder)
        reason = str(error) or type(error).__name__
        slots.write(state.noted("failed", revision.folder, reason[:200]))
    except OSError:
        return
