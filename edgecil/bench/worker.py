"""One run in a process of its own, which can be stopped at any time and loses nothing by it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
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
from edgecil.errors import EdgecilError, Interrupted, OutOfMemory
from edgecil_runtime.container import write_atomic

BASES = ".work/.bases"
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
    listing = layouts.read(run.protocol.layout, data)
    work = out / ".work" / run.key
    work.mkdir(parents=True, exist_ok=True)
    try:
        result = execute(
            run, listing, work, should_stop=stopped, on_increment=told, bases=Bases(out / BASES)
        )
    except Interrupted:
        raise
    except EdgecilError as error:
        # What the error says of a smaller run is for another command.
        hint = f"run it with {error.smaller}" if isinstance(error, OutOfMemory) else error.hint
        return Fault(error.message, hint, error.code, error.exit_code)
    write_atomic(result_path(out, run), results.to_text(result).encode())
    return None
