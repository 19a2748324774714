"""The one place that writes: results on stdout, everything else on stderr.

Modes: for people (text), ``--json`` (exactly one object on stdout), ``--quiet`` (the one value
that a script wants). Under ``torchrun`` only the first rank writes.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from edgecil.workspace import normal_path
from edgecil_cli import _tables
from edgecil_cli._errors import Failure
from edgecil_cli._tables import Column

SCHEMA = 1
_UNLIMITED = 10_000
INDENTED = "\n  "
PROSE = 88
"""Cells of a line of prose, where the terminal is wider."""


def printable(text: str) -> str:
    """Return ``text`` with control characters escaped: names of files may contain any."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def plain(value: Any) -> Any:
    """Return ``value`` as JSON has it: dataclasses as objects, NaN as null, paths as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it is; Typer's own help console is another one."""
    return Console(
        stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True,
    )  # fmt: skip


class Output:
    """How one command answers."""

    def __init__(self, command: str, *, as_json: bool = False, quiet: bool = False) -> None:
        self.command, self.as_json, self.quiet = command, as_json, quiet
        self.muted = os.environ.get("RANK", "0") != "0"
        self.out, self.err = console(), console(stderr=True)

    @property
    def for_people(self) -> bool:
        """True when neither ``--json`` nor ``--quiet`` was given."""
        return not (self.as_json or self.quiet or self.muted)

    @property
    def width(self) -> int:
        """Cells of a line of stdout; a file or pipe has no end of line to respect."""
        if self.out.is_terminal or "COLUMNS" in os.environ:
            return self.out.width
        return _UNLIMITED

    def result(self, value: Any, *, value_only: str) -> None:
        """Answer with ``value`` as JSON or with ``value_only``, whichever was asked for."""
        if self.muted:
            return
        if self.as_json:
            self._json(ok=True, result=plain(value))
        elif self.quiet:
            self.print(value_only)

    def csv(self, text: str) -> None:
        """Answer with CSV text, as it is."""
        if not self.muted:
            self.out.file.write(text)

    def failure(self, failure: Failure) -> None:
        """Report a failure: on stderr for people, as the one JSON object for programs."""
        if self.as_json:
            if not self.muted:
                error = {k: getattr(failure, k) for k in ("code", "message", "hint")}
                self._json(ok=False, error=error)
            return
        # Names of files may hold line ends; only those before an indented line are ours.
        lines = [" ".join(line.split()) for line in failure.message.split(INDENTED)]
        self._line("error", "bold red", INDENTED.join(lines))
        if failure.hint:
            self._line("hint", "cyan", " ".join(failure.hint.split()))

    def _json(self, **rest: Any) -> None:
        answer = {"schema": SCHEMA, "command": self.command, **rest}
        sys.stdout.write(json.dumps(answer, allow_nan=False) + "\n")

    def print(self, text: str | Text = "") -> None:
        """Write lines of the result on stdout; a sentence that is too long wraps at words."""
        if isinstance(text, Text):
            text = text.copy()
            text.rstrip()
            self.out.print(text)
            return
        lines = [part for line in text.split("\n") for part in _tables.wrap(line, self.width)]
        self.out.print(printable("\n".join(lines)))

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """Write a table on stdout."""
        clean = [[printable(cell) for cell in row] for row in rows]
        self.print(_tables.table(columns, clean, self.width))

    def pairs(self, rows: Sequence[tuple[str, str]]) -> None:
        """Write ``label  value`` lines on stdout."""
        clean = [(label, printable(value)) for label, value in rows]
        self.print(_tables.pairs(clean, min(self.width, PROSE)))

    def _line(self, label: str, style: str, text: str) -> None:
        lines = text.split(INDENTED)
        if self.err.is_terminal and not text.startswith("edgecil"):
            # Words stay whole on a narrow terminal, and what is listed stays a list.
            first, *listed = lines
            wrapped = _tables.wrap(f"{label}: {first}", self.err.width)
            for line in listed:
                head, *rest = _tables.wrap(line, self.err.width - 4)
                wrapped += [f"  {head}", *(f"    {part}" for part in rest)]
            text = "\n".join(wrapped).removeprefix(f"{label}: ")
        else:
            # A log, which is read by line, and a command to copy: one line, whatever it holds.
            text = " ".join(lines)
        self.err.print(Text.assemble((f"{label}:", style), " ", printable(text)))

    def note(self, text: str) -> None:
        """Tell about a choice that was made, on stderr; ``--quiet`` leaves it out."""
        if not (self.quiet or self.muted):
            self._line("note", "yellow", text)

    def next(self, *commands: str) -> None:
        """Offer the next commands to type, on stderr."""
        if self.for_people:
            for command in commands:
                self._line("next", "cyan", command)


def percent(value: float | None) -> str:
    """Return an accuracy in [0, 1] as people read it; one that is not known is said to be so."""
    return "not measured" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def short(path: Path) -> str:
    """Return a path as it would be typed here: relative when it lies below this folder."""
    here, path = Path.cwd(), normal_path(path)
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
