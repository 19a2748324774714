"""The memory report as data: what every method keeps between increments, in bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgecil.memory.plan import MemoryPlan


@dataclass(frozen=True)
class Comparison:
    """What a row of a published table has beside its bytes."""

    dataset: str
    published_bytes: int | None = None
    """What the paper printed for this method."""
    codec: str | None = None
    """How exemplars are stored; None for a method that keeps none."""
    per_increment: tuple[int, ...] = ()
    """Kept bytes after each increment."""


@dataclass(frozen=True)
class MethodMemory:
    """One row: what a method keeps, and of which fields it is composed.

    ``fields`` are ``{"name", "bytes"}`` and add up to ``kept_bytes``. ``training_bytes`` is
    the largest training memory seen or planned, None where it is not known. ``exact`` is
    False when ``kept_bytes`` is an upper bound. ``compared`` is for published tables.
    """

    method: str
    kept_bytes: int
    fields: tuple[tuple[str, int], ...] = ()
    training_bytes: int | None = None
    basis: Literal["plan", "measured"] = "plan"
    exact: bool = True
    compared: Comparison | None = None

    def __post_init__(self) -> None:
        total = sum(count for _, count in self.fields)
        if total != self.kept_bytes:
            raise ValueError(f"{self.method}: fields add up to {total}, not {self.kept_bytes}")

    def to_json(self) -> dict[str, Any]:
        """Return the row as a JSON object."""
        row: dict[str, Any] = {
            "method": self.method,
            "kept_bytes": self.kept_bytes,
            "fields": [{"name": name, "bytes": count} for name, count in self.fields],
            "training_bytes": self.training_bytes,
            "basis": self.basis,
            "exact": self.exact,
        }
        if self.compared is not None:
            row |= vars(self.compared) | {"per_increment": list(self.compared.per_increment)}
        return row


def method_memory(
    method: str,
    memory: MemoryPlan,
    *,
    basis: Literal["plan", "measured"],
    training_bytes: int | None = None,
    compared: Comparison | None = None,
) -> MethodMemory:
    """Return the row of a method whose kept memory was planned or measured."""
    fields = tuple((row["name"], row["bytes"]) for row in memory.fields())
    return MethodMemory(
        method, memory.kept_bytes, fields, training_bytes, basis, memory.exact, compared
    )


def to_json(rows: Sequence[MethodMemory]) -> dict[str, Any]:
    """Return the report as one JSON object: ``{"methods": [...]}``."""
    return {"methods": [row.to_json() for row in rows]}


def to_csv(rows: Sequence[MethodMemory]) -> str:
    """Return the report as CSV text, one line per field and one, ``total``, per method.

    Columns: method, field, bytes, training_bytes, basis, exact, and for published tables
    dataset, codec and published_bytes; figures of a method are in its ``total`` line.
    """
    published = any(row.compared is not None for row in rows)
    head = ["method", "field", "bytes", "training_bytes", "basis", "exact"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head + (["dataset", "codec", "published_bytes"] if published else []))
    for row in rows:
        where = [row.compared.dataset, row.compared.codec] if row.compared else [None, None]
        figure = row.compared.published_bytes if row.compared else None
        for name, count in row.fields:
            line = [row.method, name, count, None, row.basis, None]
            writer.writerow(line + ([*where, None] if published else []))
        line = [row.method, "total", row.kept_bytes, row.training_bytes, row.basis, row.exact]
        writer.writerow(line + ([*where, figure] if published else []))
    return text.getvalue()
