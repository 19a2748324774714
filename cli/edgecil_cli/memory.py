"""``edgecil report-memory``: the bytes that every method keeps between increments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from edgecil.errors import UsageError
from edgecil.units import format_bytes
from edgecil_cli._options import JsonOption, QuietOption, WorkspaceOption, flag
from edgecil_cli._output import Output
from edgecil_cli._tables import Column

if TYPE_CHECKING:
    from edgecil.memory.report import MethodMemory

EPILOG = """\
Examples:

  edgecil report-memory

  edgecil report-memory --csv > memory.csv
"""
BASELINE = "lwf-mc"


def report_memory(
    csv: Annotated[bool, flag("--csv", "Answer with CSV.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the bytes each method keeps between increments."""
    output = Output("report-memory", as_json=as_json, quiet=quiet)
    if csv and as_json:
        raise UsageError("--csv and --json exclude each other")
    from edgecil import api

    report = api.report_memory(workspace=workspace)
    if csv:
        if not output.muted:
            output.out.file.write(report.to_csv())
        return
    used = next(row for row in report.rows if row.basis == "measured")
    output.result(report.to_json(), value_only=str(used.kept_bytes))
    if not output.for_people:
        return
    columns = [
        Column("method"), Column("kept", right=True), Column("training", right=True),
        Column("basis"),
    ]  # fmt: skip
    output.table(columns, [cells for row in report.rows for cells in _rows(row)])
    output.print()
    output.pairs(
        [
            ("kept", "bytes carried to the next increment, beside the classifier"),
            ("training", "teachers, gradients, momentum: only while an increment is learned"),
            ("classifier", f"{format_bytes(report.classifier_bytes)}, which every method has"),
        ]
    )
    for text in report.notes:
        output.note(text)


def _rows(row: MethodMemory) -> list[list[str]]:
    """Return a line for the method and one for each of its fields."""
    kept = format_bytes(row.kept_bytes)
    training = "not known" if row.training_bytes is None else format_bytes(row.training_bytes)
    basis = "measured: in use" if row.basis == "measured" else "plan" if row.exact else "at most"
    basis += ", baseline" if row.method == BASELINE else ""
    fields = [[f"  {name}", format_bytes(size), "", ""] for name, size in row.fields]
    return [[row.method, kept, training, basis], *fields]
