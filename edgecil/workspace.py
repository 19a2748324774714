"""The workspace on disk: immutable versions, one ``current``, one writer. No torch here.

::

    .edgecil/current                 number of the current version
    .edgecil/lock                    held by the writer
    .edgecil/versions/<n>/           manifest.json, weights.safetensors, memory.safetensors
    .edgecil/run/                    an interrupted run: request.json, state.safetensors
    .edgecil/forget/                 kept memory that is being replaced

A version is written to a temporary folder, synced, renamed; ``current`` is replaced last. A
kill at any instant loses at most the running increment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

import filelock

from edgecil.errors import UnfinishedRun, WorkspaceError
from edgecil.manifest import FOREIGN as FOREIGN
from edgecil.manifest import VersionManifest as VersionManifest
from edgecil_runtime.container import sync_directory, write_atomic

FOLDER = ".edgecil"
WEIGHTS, MEMORY, MANIFEST = "weights.safetensors", "memory.safetensors", "manifest.json"
REQUEST = "request.json"
"""What an interrupted run was asked for, and the number that its version will have."""
REMOVED = f"{WEIGHTS} is missing: removed by edgecil gc, or lost"


def with_workspace(command: str, chosen: str | os.PathLike[str] | None) -> str:
    """Return the command about the workspace that was given as ``chosen``, ready to be typed."""
    return command if chosen is None else f"{command} --workspace {shlex.quote(str(chosen))}"


def normal_path(path: Path) -> Path:
    """Return an absolute path without ``..``, where that leads to the same place."""
    given = path.absolute()
    short = Path(os.path.normpath(given))
    # Behind a symbolic link ".." is another folder than the one before it.
    return short if short.resolve() == given.resolve() else given


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of a new folder so that they survive a power cut."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        with open(folder / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    sync_directory(folder)


class Workspace:
    """A workspace directory; reading needs no lock, writing happens inside :meth:`locked`."""

    def __init__(self, root: Path, chosen: str | os.PathLike[str] | None = None) -> None:
        self.root = root
        self._chosen = chosen

    def command(self, text: str) -> str:
        """Return a command for hints; it names the workspace where the user had to."""
        return with_workspace(text, self._chosen)

    @classmethod
    def find(cls, explicit: str | os.PathLike[str] | None = None) -> Self:
        """Return the workspace to use: explicit, ``EDGECIL_WORKSPACE``, or found like ``.git``.

        It need not exist: without one in a parent, it is ``.edgecil`` in the current directory.
        """
        chosen = explicit or os.environ.get("EDGECIL_WORKSPACE")
        if chosen:
            return cls(normal_path(Path(chosen)), explicit)
        here = Path.cwd()
        for folder in (here, *here.parents):
            if (folder / FOLDER).is_dir():
                return cls(folder / FOLDER)
        return cls(here / FOLDER)

    @property
    def run(self) -> Path:
        """Folder of an interrupted run."""
        return self.root / "run"

    @property
    def waits(self) -> bool:
        """True when an interrupted run waits to be resumed or discarded."""
        return (self.run / REQUEST).exists()

    @property
    def resumable(self) -> bool:
        """True when the interrupted run began from what is the current version now."""
        try:
            began = json.loads((self.run / REQUEST).read_text(encoding="utf-8"))["parent"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return bool(began == (self.current() if self.exists() else None))

    def exists(self) -> bool:
        """Return whether there is a current version."""
        return (self.root / "current").is_file()

    def versions(self) -> list[int]:
        """Return the numbers of all committed versions, oldest first."""
        folder = self.root / "versions"
        names = os.listdir(folder) if folder.is_dir() else []
        return sorted(int(name) for name in names if name.isdigit())

    def current(self) -> int:
        """Return the number of the current version.

        Raises:
            WorkspaceError: there is none yet, or the file is damaged.
        """
        try:
            return int((self.root / "current").read_text())
        except FileNotFoundError:
            if self.waits:
                raise UnfinishedRun(
                    "no version yet: an interrupted run waits", hint=self._ways_on()
                ) from None
            raise WorkspaceError(
                f"no workspace at {self.root}",
                hint="edgecil learn --method lwm --new-data dir/, or --workspace DIR",
            ) from None
        except ValueError as error:
            raise WorkspaceError(f"{self.root / 'current'} is damaged: {error}") from None

    def path(self, version: int) -> Path:
        """Return the folder of a version."""
        return self.root / "versions" / str(version)

    def manifest(self, version: int | None = None) -> VersionManifest:
        """Return the manifest of a version (default: the current one).

        Raises:
            WorkspaceError: there is no such version, or it cannot be read.
        """
        number = self.current() if version is None else version
        if not self.path(number).is_dir():
            raise self._no_version(number)
        return VersionManifest.read(self.path(number) / MANIFEST)

    def _no_version(self, number: int) -> WorkspaceError:
        known = self.versions()
        there = f"there are {', '.join(map(str, known))}" if known else "there is none"
        return WorkspaceError(f"no version {number}; {there}")

    def lineage(self, version: int) -> list[int]:
        """Return ``version`` and its ancestors that still exist, newest first."""
        line, number = [], version
        while number is not None and self.path(number).is_dir():
            line.append(number)
            parent = self.manifest(number).parent
            if parent is None:
                break
            number = parent
        return line

    def increments(self, version: int) -> list[VersionManifest]:
        """Return the manifests of ``version`` and its ancestors, newest first, one per increment.

        A renamed class makes a version and no increment: the newest of each increment counts.
        """
        found: dict[int, VersionManifest] = {}
        for number in self.lineage(version):
            manifest = self.manifest(number)
            found.setdefault(manifest.increment, manifest)
        return list(found.values())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the writer's lock; what killed writers left is finished or removed.

        A workspace that is made for this and stays without a version is removed again.

        Raises:
            WorkspaceError: another process is writing, or the folder cannot be made.
        """
        made_here = not self.root.exists()
        try:
            (self.root / "versions").mkdir(parents=True, exist_ok=True)
            ignore = self.root / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
            lock = filelock.FileLock(self.root / "lock", timeout=0)
            lock.acquire()
        except filelock.Timeout:  # before OSError, which it is one of
            raise WorkspaceError(
                f"another edgecil process is writing to {self.root}",
                hint="wait for it, or use another folder with --workspace",
            ) from None
        except OSError as error:
            raise WorkspaceError(f"cannot write to {self.root}: {error.strerror}") from None
        try:
            self._settle()
            yield
        finally:
            if made_here and not self.exists() and not self.run.exists():
                shutil.rmtree(self.root, ignore_errors=True)
            lock.release()

    def _settle(self) -> None:
        """Finish the commit of a writer that was killed in it, and remove half-written files."""
        for leftover in (*self.root.glob("versions/.new-*"), *self.root.glob(".new-*")):
            shutil.rmtree(leftover, ignore_errors=True)
        self._replace_memory()
        for leftover in self.root.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        if not self.waits:
            self.discard_run()
        try:
            number = json.loads((self.run / REQUEST).read_text(encoding="utf-8"))["version"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        if number in self.versions():
            # The folder got its name when it was complete: only what follows was cut off.
            write_atomic(self.root / "current", f"{number}\n".encode())
            self._finish(number)

    def read(self, version: int, name: str) -> bytes | None:
        """Return the content of a file of a version; None when it is not kept (any more).

        Raises:
            WorkspaceError: it is not what was written.
        """
        path = self.path(version) / name
        if not path.exists():
            return None
        data = path.read_bytes()
        if _digest(data) != self.manifest(version).files.get(name):
            raise WorkspaceError(
                f"{path} is damaged: its SHA-256 is not the one of the manifest",
                hint=f"{self.command('edgecil rollback')} makes the version before current",
            )
        return data

    def next_version(self) -> int:
        """Return the number of the version to be committed; numbers are never reused."""
        return max(self.versions(), default=0) + 1

    def commit(self, manifest: VersionManifest, files: Mapping[str, bytes]) -> None:
        """Make a new version current, atomically, and drop exemplars no rollback needs.

        Raises:
            WorkspaceError: it could not be written (disk full, say); nothing changed.
        """
        manifest = replace(manifest, files={n: _digest(data) for n, data in files.items()})
        target = self.path(manifest.version)
        temporary = target.parent / f".new-{manifest.version}"
        text = manifest.encode()
        try:
            _write_folder(temporary, {**files, MANIFEST: text})
            os.rename(temporary, target)
            sync_directory(target.parent)
            write_atomic(self.root / "current", f"{manifest.version}\n".encode())
        except OSError as error:
            # When only the last sync failed, a power cut leaves the old version or the new one.
            if not self.exists() or self.current() != manifest.version:
                shutil.rmtree(temporary, ignore_errors=True)
                shutil.rmtree(target, ignore_errors=True)
                resume = self.command("edgecil learn --resume")
                again = resume if self.waits else "run the same again"
                raise WorkspaceError(
                    f"version {manifest.version} could not be written: {error.strerror}",
                    hint=f"free some space, then {again}",
                ) from None
        self._finish(manifest.version)

    def _finish(self, version: int) -> None:
        """Remove what is not needed any more once ``version`` is the current one."""
        self.discard_run()
        # Kept images are needed by the current version and, for a rollback, by those before it.
        for number in set(self.versions()).difference(self._with_memory(version)):
            (self.path(number) / MEMORY).unlink(missing_ok=True)

    def _with_memory(self, version: int) -> list[int]:
        """Return the versions of the last two increments: a renamed class makes no increment."""
        line = {number: self.manifest(number).increment for number in self.lineage(version)}
        recent = list(dict.fromkeys(line.values()))[:2]
        return [number for number, increment in line.items() if increment in recent]

    def amend(self, changes: Mapping[int, tuple[VersionManifest, bytes]]) -> None:
        """Replace the kept memory of versions, in all of them or in none, whenever it is killed.

        The one change that a version ever sees: see :func:`edgecil.upkeep.forget`.

        Raises:
            WorkspaceError: it could not be written (disk full, say); nothing changed.
        """
        staging = self.root / ".new-forget"
        try:
            for number, (manifest, memory) in changes.items():
                digests = {n: d for n, d in manifest.files.items() if n != MEMORY}
                digests |= {MEMORY: _digest(memory)} if memory else {}
                files = {MANIFEST: replace(manifest, files=digests).encode()}
                _write_folder(staging / str(number), files | ({MEMORY: memory} if memory else {}))
            sync_directory(staging)
            os.rename(staging, self.root / "forget")
            sync_directory(self.root)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise WorkspaceError(f"cannot write to {self.root}: {error.strerror}") from None
        self._replace_memory()

    def _replace_memory(self) -> None:
        """Put staged memory in its place; done again from any point at which it was killed."""
        staged = self.root / "forget"
        for folder in sorted(staged.glob("*")):
            version = self.path(int(folder.name))
            if (folder / MANIFEST).exists():
                # Without memory a version can be read; with one of another hash it cannot.
                (version / MEMORY).unlink(missing_ok=True)
                os.replace(folder / MANIFEST, version / MANIFEST)
            if (folder / MEMORY).exists():
                os.replace(folder / MEMORY, version / MEMORY)
            sync_directory(version)
        shutil.rmtree(staged, ignore_errors=True)

    def complete(self, version: int) -> bool:
        """Return whether a version still has its weights."""
        return (self.path(version) / WEIGHTS).exists()

    def memory_gone(self, version: int) -> bool:
        """Return whether a version kept something that is not stored any more."""
        kept = self.manifest(version).kept["bytes"]
        return bool(kept) and not (self.path(version) / MEMORY).exists()

    def rollback(self, to: int | None = None) -> int:
        """Make an earlier version current again (default: the parent) and return its number.

        Raises:
            WorkspaceError: there is no such version or it is damaged, the current one has no
                parent, or the disk is full.
        """
        target = self.manifest().parent if to is None else to
        if target is None:
            raise WorkspaceError("the current version is the first one: nothing to roll back to")
        if target not in self.versions():
            raise self._no_version(target)
        self.manifest(target)  # a damaged version is not made current
        if not self.complete(target):
            raise WorkspaceError(f"version {target} cannot be used: {REMOVED}")
        try:
            write_atomic(self.root / "current", f"{target}\n".encode())
        except OSError as error:
            raise WorkspaceError(f"cannot write to {self.root}: {error.strerror}") from None
        return target

    def refuse_unfinished(self) -> None:
        """Raise when an interrupted run is waiting.

        Raises:
            UnfinishedRun: with the command that resumes it.
        """
        if self.waits:
            raise UnfinishedRun(f"an interrupted run waits in {self.run}", hint=self._ways_on())

    def _ways_on(self) -> str:
        """Return the hint that says what to do with the interrupted run."""
        if self.resumable:
            return f"{self.command('edgecil learn --resume')}, or --discard to start over"
        afresh = self.command("edgecil learn --discard --new-data dir/")
        return f"{afresh}: it began from another version"

    def discard_run(self) -> None:
        """Remove the interrupted run, if there is one."""
        shutil.rmtree(self.run, ignore_errors=True)
