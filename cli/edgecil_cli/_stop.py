"""Ctrl-C and SIGTERM: the first one ends a run cleanly, the second one at once.

Only the command line catches signals; the library asks ``should_stop()``. While a version is
being committed a signal waits: an impatient second Ctrl-C must not break the save.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from edgecil.engine.events import Event, PhaseStarted, Stage

COMMIT = "saving"
"""The text of the stage in which the library commits a version."""
STOPPING = "stopping after this step; press Ctrl-C again to stop at once"
_last: int | None = None


def exit_code() -> int:
    """Return the status of a process that was stopped: 143 after SIGTERM, else 130."""
    return 143 if _last == signal.SIGTERM else 130


class Stop:
    """Whether the user wants the run to stop; a listener of the run's events as well."""

    def __init__(self) -> None:
        self.wanted = False
        self.announced = False
        """True when the progress display says that it is stopping; then nothing else must."""
        self._trained = False
        self._committing = False

    def __call__(self) -> bool:
        return self.wanted

    def watch(self, event: Event) -> None:
        """Follow the run: before its first phase there is nothing to save."""
        self._trained = self._trained or isinstance(event, PhaseStarted)
        self._committing = isinstance(event, Stage) and event.text == COMMIT

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; end at once on the second, or when nothing could be saved."""
        global _last
        _last = number
        if self._committing:
            self.wanted = True
            return
        if self.wanted or not self._trained:
            raise KeyboardInterrupt
        self.wanted = True
        if not self.announced:
            # Not print(): the signal may have come in the middle of one.
            os.write(2, f"\n{STOPPING}\n".encode())


def _at_once(number: int, frame: FrameType | None) -> None:
    global _last
    _last = number
    raise KeyboardInterrupt


@contextlib.contextmanager
def _handling(handler: object) -> Iterator[None]:
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, handler) for number in signals}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Let both signals end a command at once, but through its ``finally`` clauses."""
    with _handling(_at_once):
        yield


@contextlib.contextmanager
def gracefully() -> Iterator[Stop]:
    """Let the first signal ask a run to stop; yields what to ask."""
    stop = Stop()
    with _handling(stop.handle):
        yield stop
