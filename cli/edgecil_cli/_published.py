"""``report-memory --protocol``: a published table with our figures, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgecil.units import format_bytes
from edgecil_cli._output import Output
from edgecil_cli._tables import Column

if TYPE_CHECKING:
    from edgecil.memory.report import MethodMemory
    from edgecil.reporting.comparison import Column as Half
    from edgecil.reporting.comparison import PublishedTable

SHOWN = 5_000
"""Fewer bytes are not 0.01 MB."""


def show(
    output: Output, protocol: str, results: Path | None, workspace: Path | None, *, csv: bool
) -> None:
    """Answer with a published table; ``workspace`` is looked at only when it was given."""
    from edgecil.reporting import compare
    from edgecil.workspace import Workspace

    place = None if workspace is None else Workspace.find(workspace)
    table = compare(protocol, results=results, workspace=place)
    if csv:
        output.csv(table.to_csv())
        return
    output.result(table.to_json(), value_only=_lines(table))
    if not output.for_people:
        return
    output.print(f"{table.protocol.summary}\n{table.protocol.source}")
    for half in table.columns:
        _kept(output, half)
    for half in table.columns:
        _training(output, half)
    output.print()
    output.pairs(
        [
            ("MB", "10^6 bytes, beside the network itself; --json has every byte and increment"),
            ("first, last", "kept after the first and the last increment"),
            ("at most", "what noise would take: the codec's size depends on the image"),
            ("measured", "the file after the last increment"),
        ]
    )
    for text in table.notes:
        output.note(text)


def _lines(table: PublishedTable) -> str:
    """Return a line per row for scripts: data set, method, codec and bytes."""
    return "\n".join(
        f"{row.compared.dataset} {row.method} {row.compared.codec or '-'} {row.kept_bytes}"
        for row in table.rows
        if row.compared is not None
    )


def megabytes(count: int | None) -> str:
    """Return bytes in MB with two decimals, as the papers print them."""
    if not count:
        return "" if count is None else "0"
    return f"{count / 1e6:.2f}" if count >= SHOWN else "<0.01"


def _kept(output: Output, half: Half) -> None:
    measured = {_key(row): row.kept_bytes for row in half.rows if row.basis == "measured"}
    titles = ["first", "last", "measured", "published"]
    columns = [
        Column("kept, MB"),
        *(Column(title, right=True) for title in titles),
        Column("basis"),
    ]
    rows = [
        cells for row in half.rows if row.basis == "plan"
        for cells in _rows(row, measured.get(_key(row)))
    ]  # fmt: skip
    if not measured:
        columns.pop(3)
        rows = [[*cells[:3], *cells[4:]] for cells in rows]
    output.print()
    _title(output, half)
    output.table(columns, rows)


def _title(output: Output, half: Half) -> None:
    network = format_bytes(half.network_bytes)
    output.print(f"{half.dataset.name} with {half.dataset.arch} ({network} itself)")


def _key(row: MethodMemory) -> tuple[str, str | None]:
    return row.method, None if row.compared is None else row.compared.codec


def _rows(row: MethodMemory, measured: int | None) -> list[list[str]]:
    """Return a line for the method and one for each field that shows in two decimals."""
    assert row.compared is not None
    name = f"{row.method}, {row.compared.codec}" if row.compared.codec else row.method
    first = megabytes(row.compared.per_increment[0])
    total = [
        name, first, megabytes(row.kept_bytes), megabytes(measured),
        megabytes(row.compared.published_bytes), "plan" if row.exact else "at most",
    ]  # fmt: skip
    fields = [
        [f"  {field}", "", megabytes(size), "", "", ""]
        for field, size in row.fields
        if size >= SHOWN
    ]
    return [total, *fields]


def _training(output: Output, half: Half) -> None:
    from edgecil.reporting.training import KINDS

    kinds = [k for k in KINDS if any(held and held[k] for held in half.training.values())]
    columns = [Column("training, MB"), *(Column(k, right=True) for k in [*kinds, "total"])]
    rows: list[Sequence[str]] = []
    for method, held in half.training.items():
        cells = ["?" for _ in [*kinds, "total"]]
        if held is not None:
            cells = [megabytes(size) for size in [*(held[k] for k in kinds), sum(held.values())]]
        rows.append([method, *cells])
    output.print()
    _title(output, half)
    output.table(columns, rows)
