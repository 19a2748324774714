"""How a run shows itself: one live bar on a terminal, time-stamped lines anywhere else."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

from edgecil.engine.events import Event, Listener, Note, PhaseStarted, Progress, Stage
from edgecil.units import count, format_seconds
from edgecil_cli._output import Output, printable
from edgecil_cli._stop import STOPPING, Stop

EVERY_SECONDS = 10.0
"""Lines of a log are at least so far apart."""
REFRESH = 5
BAR = 12


def terms_text(terms: Mapping[str, float]) -> str:
    """Return the loss terms in one line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in terms.items())


def _rate(event: Progress) -> list[str]:
    """Return the rate of a phase that reads images; a synthesis reads none."""
    rate = event.images_per_second
    return [f"{rate:,.0f} images/s"] if rate else []


class _Pace:
    """How long a stage still takes, by its pace since it began."""

    def __init__(self) -> None:
        self._event = Stage("")
        self._since = 0.0
        self._first = 0
        self._left: list[str] = []

    def left(self, event: Stage) -> list[str]:
        """Return the time that is left, where there is a pace to tell it by.

        An event that is asked about again has the same answer, so that no display counts up.
        """
        if event == self._event:
            return self._left
        now = time.monotonic()
        if event.text != self._event.text or event.done < self._first:
            self._since, self._first = now, event.done
        self._event, self._left = event, []
        if event.total and (done := event.done - self._first):
            seconds = (now - self._since) / done * (event.total - event.done)
            self._left = [f"{format_seconds(seconds)} left"]
        return self._left


class Lines:
    """Plain lines with the time of day: for log files, pipes and CI."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self._stage = ""
        self._pace = _Pace()
        self._epoch = -1
        self._printed = -EVERY_SECONDS

    def _print(self, text: str) -> None:
        self.output.err.print(f"{time.strftime('%H:%M:%S')} {printable(text)}")
        self._printed = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Print what is worth a line: a phase, an epoch at most every 10 s, a stage."""
        due = time.monotonic() - self._printed >= EVERY_SECONDS
        if isinstance(event, PhaseStarted):
            self._epoch = -1
            again = f", going on at step {event.step}" if event.step else ""
            images = [f"{event.images:,} images"] if event.images else []
            what = ", ".join([*images, f"{event.steps:,} steps"])
            self._print(f"{event.name}: {what}{again}")
        elif isinstance(event, Progress):
            self._progress(event, due)
        elif isinstance(event, Stage):
            left = "".join(f"  {text}" for text in self._pace.left(event))
            if event.text != self._stage or (due and event.total):
                share = f" {event.done}/{event.total}{left}" if event.done else ""
                self._print(f"{event.text}{share}")
                self._stage = event.text

    def _progress(self, event: Progress, due: bool) -> None:
        last = event.step == event.steps
        if not last and (event.epoch == self._epoch or not due):
            return
        self._epoch = event.epoch
        left = "done" if last else f"{format_seconds(event.seconds_left)} left"
        where = f"{event.phase} epoch {event.epoch}/{event.epochs}"
        self._print("  ".join([where, terms_text(event.terms), *_rate(event), left]))


class Bar:
    """What the live display shows; drawn anew a few times per second at the current width."""

    def __init__(self, stop: Stop | None) -> None:
        self.stop = stop
        self.event: Progress | Stage | None = None
        self._pace = _Pace()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw one line for where the run is, and one for its loss terms."""
        event, width = self.event, options.max_width
        if event is None:
            return
        done, total = (
            (event.step, event.steps) if isinstance(event, Progress) else (event.done, event.total)
        )
        left = event.phase if isinstance(event, Progress) else event.text
        used = cell_len(left) + BAR + 2
        shown: list[str] = []
        for part in self._facts(event):
            if used + cell_len(part) + 2 > width:
                break
            shown.append(part)
            used += cell_len(part) + 2
        yield Segment(f"{left} ")
        if total:
            bar = ProgressBar(total=total, completed=done, width=BAR)
            # Without colours the bar of a beginning is empty: there is no line of it.
            lines = console.render_lines(bar, options.update(width=BAR), pad=False)
            yield from lines[0] if lines else [Segment(" " * BAR)]
        yield Segment("".join(f"  {part}" for part in shown))
        yield Segment.line()
        detail = terms_text(event.terms) if isinstance(event, Progress) else ""
        if self.stop is not None and self.stop.wanted:
            detail = STOPPING
        yield Text(f"  {detail}", no_wrap=True, overflow="ellipsis", style="dim")

    def _facts(self, event: Progress | Stage) -> list[str]:
        """Return what to say beside the bar, the most wanted first."""
        if isinstance(event, Stage):
            share = [f"{event.done}/{event.total}"] if event.total else []
            return [*share, *self._pace.left(event)]
        epoch = f"epoch {min(event.epoch + 1, event.epochs)}/{event.epochs}"
        return [epoch, f"{format_seconds(event.seconds_left)} left", *_rate(event)]


class Display:
    """The live bar; finished phases stay above it as lines."""

    def __init__(self, output: Output, live: Live, bar: Bar) -> None:
        self.output, self.live, self.bar = output, live, bar

    def __call__(self, event: Event) -> None:
        """Show the event; the bar itself is drawn by the refresh thread."""
        if isinstance(event, Stage):
            self.bar.event = event
        elif isinstance(event, Progress):
            self.bar.event = event
            if event.step == event.steps:
                epochs = [count(event.epochs, "epoch")] if event.epochs < event.steps else []
                done = ", ".join([*epochs, count(event.steps, "step"), *_rate(event)])
                self.output.err.print(f"{event.phase}: {done}\n  {terms_text(event.terms)}")


class Events:
    """Every event as a line of JSON in a file."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8", buffering=1)

    def __call__(self, event: Event) -> None:
        """Append the event: ``{"event", "time", ...}``; ``time`` is seconds since 1970."""
        row: dict[str, Any] = {"event": type(event).__name__, "time": round(time.time(), 3)}
        self.file.write(json.dumps(row | asdict(event)) + "\n")


@contextlib.contextmanager
def listening(
    output: Output, stop: Stop | None = None, events: Path | None = None
) -> Iterator[Listener]:
    """Show a run's progress on stderr while the context is open; yields the run's listener."""
    with contextlib.ExitStack() as stack:
        listeners: list[Listener] = [stop.watch] if stop else []
        if events is not None:
            log = Events(events)
            stack.callback(log.file.close)
            listeners.append(log)
        if not (output.quiet or output.muted):
            listeners.append(stack.enter_context(_display(output, stop)))

        def tell(event: Event) -> None:
            for listener in listeners:
                listener(event)
            if isinstance(event, Note):
                output.note(event.text)

        yield tell


@contextlib.contextmanager
def _display(output: Output, stop: Stop | None) -> Iterator[Listener]:
    if not output.err.is_terminal or output.err.is_dumb_terminal:
        yield Lines(output)
        return
    bar = Bar(stop)
    with Live(bar, console=output.err, refresh_per_second=REFRESH, transient=True) as live:
        if stop is not None:
            stop.announced = True
        yield Display(output, live, bar)
    if stop is not None:
        stop.announced = False
