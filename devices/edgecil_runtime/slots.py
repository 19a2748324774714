"""Two slots for a model, and one small file that says which of them counts.

    ROOT/state.json              replaced atomically; nothing else decides what is current
    ROOT/lock                    held by whoever changes something
    ROOT/a/<name>-v<n>/          a complete bundle
    ROOT/a/baked/                what was made of it for this onnxruntime and CPU
    ROOT/b/...

A slot counts only when ``state.json`` names it with the hash of its manifest: what was being
written when the power went is not a model but rubbish, which the next install removes. Files
of a slot are never overwritten in place, so an app that holds an old model keeps it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, Mapping, Optional, Tuple

from edgecil_runtime.bundle import Bundle, open_bundle
from edgecil_runtime.container import write_atomic
from edgecil_runtime.errors import BundleError, RuntimeFault, UpdateError
from edgecil_runtime.images import PathLike
from edgecil_runtime.revision import Revision, manifest_sha256, whole_number
from edgecil_runtime.strict_json import decode_json

if TYPE_CHECKING:
    from edgecil_runtime.classifier import Classifier

MAX_ATTEMPTS = 3
"""Starts that a version on trial gets before the previous one is used again."""
SCHEMA = 1
_STATE, _LOCK = "state.json", "lock"
_KEYS = ("a", "b")
_EVENTS = 20  # kept in the history
_PATIENCE = 10.0  # seconds to wait for another process that counts a start or commits

Change = Callable[["State"], "State"]


@dataclass(frozen=True)
class State:
    """Which slot counts; every change is a new value.

    ``current`` and ``previous`` are keys of ``slots`` or None. On ``trial`` the current version
    is not committed yet, and was started ``attempts`` times. ``history`` has the last events,
    oldest first: ``{"time", "event", "bundle", "detail"}``.
    """

    current: Optional[str] = None
    previous: Optional[str] = None
    trial: bool = False
    attempts: int = 0
    slots: Mapping[str, Optional[Revision]] = field(default_factory=lambda: dict.fromkeys(_KEYS))
    history: Tuple[Mapping[str, str], ...] = ()

    @classmethod
    def from_json(cls, data: Any) -> State:
        """Return the state that a decoded JSON object describes.

        Raises:
            BundleError, ValueError, KeyError, TypeError: it describes none.
        """
        if whole_number(data["schema"]) > SCHEMA:
            raise ValueError(f"it has schema {data['schema']}, this runtime reads up to {SCHEMA}")
        slots = {
            key: None if data["slots"][key] is None else Revision.from_json(data["slots"][key])
            for key in _KEYS
        }
        for role in ("current", "previous"):
            if data[role] is not None and slots[data[role]] is None:
                raise ValueError(f"the {role} slot is empty")
        return cls(
            data["current"],
            data["previous"],
            bool(data["trial"]),
            whole_number(data["attempts"]),
            slots,
            tuple(data["history"]),
        )

    def to_json(self) -> Dict[str, Any]:
        """Return the state as a JSON object."""
        slots = {key: slot and slot._asdict() for key, slot in self.slots.items()}
        return {**vars(self), "schema": SCHEMA, "slots": slots, "history": list(self.history)}

    @property
    def revision(self) -> Optional[Revision]:
        """What is installed in the current slot."""
        return self.slots[self.current] if self.current else None

    @property
    def spare(self) -> str:
        """Key of the slot that the next install writes."""
        return _KEYS[1] if self.current == _KEYS[0] else _KEYS[0]

    def noted(self, event: str, bundle: str, detail: str = "") -> State:
        """Return the state with one more event in its history."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = {"time": now, "event": event, "bundle": bundle, "detail": detail}
        return replace(self, history=(*self.history, entry)[-_EVENTS:])

    def without_spare(self) -> State:
        """Return the state before the spare slot is overwritten: there is no way back to it."""
        return replace(self, previous=None, slots={**self.slots, self.spare: None})

    def switched(self, revision: Revision, trial: bool) -> State:
        """Return the state in which the spare slot, now complete, is the current one."""
        slots = {**self.slots, self.spare: revision}
        trial = trial and self.current is not None  # without a way back there is nothing to try
        state = State(self.spare, self.current, trial, 0, slots, self.history)
        return state.noted("installed on trial" if trial else "installed", revision.folder)

    def started(self) -> State:
        """Return the state after one more start, which may be one too many on trial."""
        if not self.trial:
            return self
        if self.attempts >= MAX_ATTEMPTS:
            return self.rolled_back(f"not committed after {MAX_ATTEMPTS} starts")
        return replace(self, attempts=self.attempts + 1)

    def without(self, tried: State, reason: str) -> State:
        """Return the state after the current version of ``tried`` turned out to be damaged."""
        same = self.current == tried.current and self.revision == tried.revision
        return self.rolled_back(reason) if same and self.previous else self

    def committed(self) -> State:
        """Return the state in which the current version needs no more proof."""
        assert self.revision is not None
        if not self.trial:
            return self
        state = replace(self, trial=False, attempts=0)
        return state.noted("committed", self.revision.folder)

    def rolled_back(self, reason: str) -> State:
        """Return the state in which the previous version is the current one again."""
        assert self.revision is not None and self.previous is not None
        state = State(self.previous, None, False, 0, self.slots, self.history)
        return state.noted("rolled back", self.revision.folder, reason)


def default_root() -> Path:
    """Return EDGECIL_DEVICE_ROOT, or ``edgecil-device`` in the current folder."""
    return Path(os.environ.get("EDGECIL_DEVICE_ROOT") or "edgecil-device")


class Slots:
    """The device directory ``root`` (default: :func:`default_root`).

    An app opens the installed model with :meth:`open`, and confirms a version that is on trial
    with :meth:`commit` once its own health check passed.
    """

    def __init__(self, root: Optional[PathLike] = None) -> None:
        self.root = default_root() if root is None else Path(root)

    def state(self) -> State:
        """Return the state; a directory that is not there yet has an empty one.

        Raises:
            UpdateError: the state is damaged.
        """
        path = self.root / _STATE
        try:
            return State.from_json(decode_json(path.read_bytes()))
        except FileNotFoundError:
            return State()
        except (BundleError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UpdateError(
                f"{path} is damaged: {reason}", hint=f"rm {path}, then install a bundle again"
            ) from None

    def write(self, state: State) -> None:
        """Replace the state at once; the caller holds the lock.

        Raises:
            OSError: nothing was replaced.
        """
        write_atomic(self.root / _STATE, json.dumps(state.to_json(), indent=1).encode() + b"\n")

    def bundle_path(self, key: str, revision: Revision) -> Path:
        """Return the folder of the bundle in a slot."""
        return self.root / key / revision.folder

    def current_path(self) -> Path:
        """Return the folder of the current bundle.

        Raises:
            UpdateError: nothing is installed.
        """
        state = self.state()
        return self.bundle_path(*self._installed(state))

    def verified(self, key: str, revision: Revision) -> Bundle:
        """Return the bundle in a slot after checking that it is ``revision``, byte for byte.

        Raises:
            BundleError: it is damaged, gone, or another one.
        """
        path = self._identified(key, revision)
        try:
            return open_bundle(path)
        except RuntimeFault as fault:
            raise BundleError(fault.message, hint="install it again") from None

    def _identified(self, key: str, revision: Revision) -> Path:
        path = self.bundle_path(key, revision)
        try:
            found = manifest_sha256(path)
        except OSError as error:
            raise BundleError(f"{error.filename}: {error.strerror}") from None
        if found != revision.manifest_sha256:
            raise BundleError(f"{path}: is not the bundle that was installed")
        return path

    def open(self, **options: Any) -> Classifier:
        """Return a classifier of the installed model; ``options`` are those of ``Classifier``.

        Counts a start when the version is on trial, and goes back to the previous one when
        its starts are used up, when they cannot be counted, or when the files are damaged.

        Raises:
            UpdateError: nothing is installed.
            RuntimeFault: see ``Classifier``.
        """
        from edgecil_runtime.classifier import Classifier

        state = self.state()
        if state.trial:
            state = self._if_possible(State.started, state, "starts cannot be counted")
        while True:
            key, revision = self._installed(state)
            try:
                return Classifier(self._identified(key, revision), **options)
            except BundleError as fault:
                change = partial(State.without, tried=state, reason=fault.message)
                state = self._if_possible(change, state, fault.message)
                if state.current == key and state.revision == revision:
                    raise

    def _if_possible(self, change: Change, state: State, reason: str) -> State:
        # An app that may not write here still gets a proven version, though nobody is told.
        try:
            return self._update(change)
        except OSError:
            return state if state.previous is None else state.rolled_back(reason)

    def _update(self, change: Change) -> State:
        with self.locked(_PATIENCE):
            before = self.state()
            after = change(before)
            if after != before:
                self.write(after)
            return after

    def _installed(self, state: State) -> Tuple[str, Revision]:
        if state.current is None or state.revision is None:
            raise UpdateError(
                f"{self.root}: nothing is installed",
                hint=f"edgecil-device install BUNDLE --root {self.root}",
            )
        return state.current, state.revision

    def commit(self) -> State:
        """Return the state after confirming the current version; again changes nothing.

        Raises:
            UpdateError: nothing is installed, or another process does not end its work.
            BundleError: the files of the current version are damaged.
            OSError: the state cannot be written.
        """
        self.verified(*self._installed(self.state()))
        return self._update(State.committed)

    def rollback(self, reason: str = "asked for") -> State:
        """Return the state after going back to the previous version, whose files are checked.

        Raises:
            UpdateError: there is no previous version.
            BundleError: it is damaged; nothing was changed.
            OSError: the state cannot be written.
        """
        self._installed(self.state())
        return self._update(lambda state: self._checked(state).rolled_back(reason))

    def _checked(self, state: State) -> State:
        """Return the state when its previous version is there and intact."""
        previous = state.slots[state.previous] if state.previous else None
        if state.previous is None or previous is None:
            raise UpdateError(
                f"{self.root}: there is no previous version to go back to",
                hint=f"edgecil-device install BUNDLE --root {self.root}",
            )
        self.verified(state.previous, previous)
        return state

    @contextlib.contextmanager
    def locked(self, patience: float = 0.0) -> Iterator[None]:
        """Keep every other process from changing something; waits at most ``patience`` seconds.

        The kernel lets go of the lock when its holder dies, however it dies.

        Raises:
            UpdateError: another process holds it.
            OSError: the directory cannot be written.
        """
        with open(self.root / _LOCK, "ab") as file:
            end = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise UpdateError(
                            f"{self.root}: another process is installing",
                            hint="try again when it is done",
                        ) from None
                    time.sleep(0.02)
            yield

    def clear_spare(self, state: State) -> Path:
        """Return the empty folder of the spare slot, which ``state`` does not name.

        Raises:
            OSError: it cannot be emptied.
        """
        for rubbish in self.root.glob(f".{_STATE}.*.tmp"):  # of a process that was killed
            rubbish.unlink()
        folder = self.root / state.spare
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        return folder
