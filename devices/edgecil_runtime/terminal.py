"""Lines for people: broken at blanks on a terminal, left whole in a pipe, which scripts search."""

from __future__ import annotations

import os
import re
from typing import TextIO

_NARROWEST = 20
_UNIT = re.compile(r"(?<=\d) (?=(?:kB|MB|GB|B|ms|s|%)(?!\w))")
_COMMAND = re.compile(r"\s*(?:\w+: )?edgecil")


def fitted(text: str, stream: TextIO) -> str:
    """Return ``text`` with its lines broken to the width of ``stream``, if that is a terminal.

    Words such as paths stay whole, a number keeps its unit, and a command to copy is one line.
    """
    if not stream.isatty():
        return text
    width = max(_NARROWEST, _columns(stream))
    return "\n".join(_broken(line, width) for line in text.split("\n"))


def _columns(stream: TextIO) -> int:
    import shutil

    try:
        own = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        own = os.terminal_size((80, 24))
    # COLUMNS, or stdout's terminal; where stdout is a pipe, that of the stream.
    return shutil.get_terminal_size((own.columns or 80, own.lines)).columns


def _broken(line: str, width: int) -> str:
    import textwrap

    if len(line) <= width or _COMMAND.match(line):
        return line
    indent = line[: len(line) - len(line.lstrip())]
    glued = _UNIT.sub("\N{NO-BREAK SPACE}", line)
    lines = textwrap.wrap(
        glued, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")
