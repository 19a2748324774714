"""Plain tables that fit the terminal: columns when they fit, one block per row when not."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

GAP = "  "
NARROWEST = 20


@dataclass(frozen=True)
class Column:
    """A column: its title, and whether its cells are numbers (aligned right)."""

    title: str
    right: bool = False


def _pad(cell: str, width: int, right: bool = False) -> str:
    space = " " * max(0, width - cell_len(cell))
    return space + cell if right else cell + space


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    titles = [column.title for column in columns]
    return [max(cell_len(row[i]) for row in (titles, *rows)) for i in range(len(columns))]


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Text:
    """Return the table as text of at most ``width`` cells, where no cell is wider than that.

    Too many columns become one block of ``title  cell`` lines per row: nothing is cut off.
    """
    widths = _widths(columns, rows)
    if sum(widths) + len(GAP) * (len(widths) - 1) > width:
        return _blocks(columns, rows, width)
    lines = Text()
    for number, row in enumerate([[c.title for c in columns], *rows]):
        cells = [
            _pad(cell, size, column.right)
            for cell, size, column in zip(row, widths, columns, strict=True)
        ]
        lines.append(GAP.join(cells).rstrip(), "bold" if number == 0 else "")
        lines.append("\n")
    return lines


def _blocks(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Text:
    lines = Text()
    for number, row in enumerate(rows):
        if number:
            lines.append("\n")
        filled = [(c.title, cell) for c, cell in zip(columns, row, strict=True) if cell]
        lines.append_text(pairs(filled, width))
    return lines


def pairs(rows: Sequence[tuple[str, str]], width: int) -> Text:
    """Return ``label  value`` lines with aligned values; long values wrap under themselves."""
    indent = max((cell_len(label) for label, _ in rows), default=0) + len(GAP)
    lines = Text()
    for label, value in rows:
        lines.append(_pad(label, indent), "bold")
        wrapped = [part for line in value.split("\n") for part in wrap(line, width - indent)]
        lines.append(f"\n{' ' * indent}".join(wrapped) + "\n")
    return lines


def wrap(text: str, width: int) -> list[str]:
    """Return the lines of ``text``; words such as paths are never broken, nor ``300 kB``."""
    if cell_len(text) <= width:
        return [text]
    glued = re.sub(r"(?<=\d) (?=(B|kB|MB|GB|s|ms|min|h|%)\b|%)", "\N{NO-BREAK SPACE}", text)
    lines = textwrap.wrap(
        glued, max(NARROWEST, width), break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
