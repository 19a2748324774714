"""One run in a process of its own, which can be stopped at any time and loses nothing by it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import traceback
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from edgecil.bench import layouts, results
from edgecil.bench.bases import Bases
from edgecil.bench.runner import Run, execute
from edgecil.errors import (
    EdgecilError,
    Interrupted,
    OutOfMemory,
    UsageError,
    WorkspaceError,
    out_of_memory,
)
from edgecil_runtime.container import write_atomic

WORK = ".work"
BASES = f"{WORK}/.bases"
DIGEST = "digest"
"""What a run that has begun was asked for."""
BEGUN, DONE = "begun", "done"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Fault:
    """What went wrong in a run, as :class:`EdgecilError` says it."""

    message: str
    hint: str | None
    code: str
    exit_code: int


def result_path(out: Path, run: Run) -> Path:
    """Return where the result of a run is, or will be."""
    return out / f"{run.key}.json"


def is_made(out: Path, run: Run) -> bool:
    """Return whether the result of a run is there.

    Raises:
        DataError: a file in its place is no result.
        UsageError: it is, or what is there of it yet, of a run that was asked for otherwise.
    """
    path, work = result_path(out, run), out / WORK / run.key
    made, mark = path.exists(), work / DIGEST
    # Results that are older than digests have none.
    begun = results.read(path).get("digest") if made else mark.exists() and mark.read_text()
    if begun and begun != run.digest:
        raise UsageError(
            f"{path if made else work} was made under other settings: the protocol, --precision "
            "or --device",
            hint="give another --out, or remove it",
        )
    return made


class Worker:
    """A process that makes the result of one run; ``answers`` is what to wait for."""

    def __init__(self, run: Run, data: Path, out: Path) -> None:
        self.run, self.begun = run, False
        context = multiprocessing.get_context("spawn")
        self.answers, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(theirs, os.getpid(), run, data, out))
        # It imports for seconds, and a signal would end it with a traceback: signals wait until
        # it listens. The tracker, when it starts, lifts the mask: it must be there before.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that its end is seen

    def answer(self) -> str | Fault:
        """Return ``BEGUN``, ``DONE`` or what went wrong.

        Raises:
            Interrupted: the worker was told to stop.
            Exception: whatever it met that no run should meet.
        """
        try:
            found: str | Fault | Exception = self.answers.recv()
        except EOFError:
            self._process.join()
            return _died(self._process.exitcode or 0)
        if isinstance(found, Exception):
            raise found
        self.begun = True
        return found

    def stop(self) -> None:
        """Ask it to save and end; one that has not begun has nothing to save and ends at once."""
        if self.begun or self.answers.poll():
            self._process.terminate()
        else:
            self._process.kill()

    def join(self) -> None:
        """Wait until it has ended."""
        self._process.join()


def _died(status: int) -> Fault:
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    hint = "see whether the memory ran out: fewer --jobs need less"
    return Fault(f"its process {how}", hint, "worker_died", 1)


def _work(answers: Connection, parent: int, run: Run, data: Path, out: Path) -> None:
    """In the worker: make the result and answer how it went."""
    signalled = False

    def stop(number: int, frame: object) -> None:
        nonlocal signalled
        signalled = True

    def stopped() -> bool:
        # A parent that was killed cannot say so.
        return signalled or os.getppid() != parent

    for number in SIGNALS:
        signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    answers.send(BEGUN)
    try:
        answer: Any = make(run, data, out, stopped) or DONE
    except Exception as error:
        answer = _portable(error)
    if os.getppid() == parent:
        answers.send(answer)


def _portable(error: Exception) -> Exception:
    """Return an error that can be raised in another process, with its traceback as a note."""
    if not isinstance(error, Interrupted):
        error.add_note(traceback.format_exc())
    try:
        made: Exception = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return made


def make(run: Run, data: Path, out: Path, stopped: Any) -> Fault | None:
    """Write the result of one run; return what went wrong, or None.

    Raises:
        Interrupted: ``stopped()`` said so.
    """

    def told(number: int, row: dict[str, Any]) -> None:
        text = f"{run.key}: {row['classes']} classes, {100 * row['top1']:.1f} %"
        print(text, file=sys.stderr, flush=True)

    if stopped():
        raise Interrupted("stopped before it began")
    work = out / WORK / run.key
    try:
        listing = layouts.read(run.protocol.layout, data)
        work.mkdir(parents=True, exist_ok=True)
        write_atomic(work / DIGEST, run.digest.encode())
        result = execute(
            run, listing, work, should_stop=stopped, on_increment=told, bases=Bases(out / BASES)
        )
        write_atomic(result_path(out, run), results.to_text(result).encode())
        shutil.rmtree(work, ignore_errors=True)
        return None
    except Exception as error:
        fault = _fault(error, work)
        if fault is None:
            raise
        return fault


def _fault(error: Exception, work: Path) -> Fault | None:
    """Return what an error means for its run, or None for one that no run should meet."""
    match error:
        case Interrupted():
            return None
        case OutOfMemory():
            # What the error says of a smaller run is for another command.
            hint = f"run it with {error.smaller}"
            return Fault(error.message, hint, error.code, error.exit_code)
        case EdgecilError():
            return Fault(error.message, error.hint, error.code, error.exit_code)
        case OSError():
            text = f"{error.filename or work}: {error.strerror or error}"
            cure = "make room on the disk" if error.errno == errno.ENOSPC else "put that right"
            hint = f"{cure}; the same command goes on"
            return Fault(text, hint, WorkspaceError.code, WorkspaceError.exit_code)
    if not out_of_memory(error):
        return None
    hint = "fewer --jobs need less; the same command goes on"
    return Fault("the memory ran out", hint, OutOfMemory.code, OutOfMemory.exit_code)
