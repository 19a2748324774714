"""``edgecil report-memory``: the bytes that every method keeps between increments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edgecil.errors import UsageError
from edgecil.units import count, format_bytes
from edgecil_cli._options import JsonOption, QuietOption, WorkspaceOption, flag, value
from edgecil_cli._output import Output, percent, short
from edgecil_cli._tables import Column

if TYPE_CHECKING:
    from edgecil.memory.report import MethodMemory
    from edgecil.reporting import MemoryReport

EPILOG = """\
Examples:

  edgecil report-memory

  edgecil report-memory --csv > memory.csv

  edgecil report-memory --protocol m2kd-table2

  edgecil report-memory --protocol m2kd-table2 --results bench/tens

  edgecil report-memory --plot memory.svg --results bench/quick
"""
BASELINE = "lwf-mc"
CODECS = {"webp-lossless": "lossless WebP", "png": "PNG", "raw": "raw pixels"}


def complete_protocol(incomplete: str) -> list[str]:
    """Return the published tables whose names begin so."""
    from edgecil.reporting.protocol import protocols

    return [name for name in protocols() if name.startswith(incomplete)]


def report_memory(
    csv: Annotated[bool, flag("--csv", "Answer with CSV.")] = False,
    protocol: Annotated[
        str | None,
        value("A published table, with our figures.", "NAME", complete=complete_protocol),
    ] = None,
    results: Annotated[Path | None, value("Results of edgecil bench.", "DIR")] = None,
    plot: Annotated[
        Path | None, value("Draw accuracy against kept bytes, .png or .svg.", "FILE")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the bytes each method keeps between increments."""
    output = Output("report-memory", as_json=as_json, quiet=quiet)
    _refuse(csv, as_json, protocol, results, plot)
    if plot is not None and results is not None:
        _plot(output, plot, results)
        return
    if protocol is not None:
        from edgecil_cli import _published

        _published.show(output, protocol, results, workspace, csv=csv)
        return
    from edgecil import api

    report = api.report_memory(workspace=workspace)
    if csv:
        output.csv(report.to_csv())
        return
    used = next(row for row in report.rows if row.basis == "measured")
    output.result(report.to_json(), value_only=str(used.kept_bytes))
    if output.for_people:
        _show(output, report)


def _refuse(
    csv: bool, as_json: bool, protocol: str | None, results: Path | None, plot: Path | None
) -> None:
    if csv and as_json:
        raise UsageError("--csv and --json exclude each other")
    if plot is not None and (csv or protocol is not None):
        raise UsageError("--plot draws a figure of its own: it goes without --protocol and --csv")
    if plot is not None and results is None:
        raise UsageError(
            "--plot needs accuracies: give the results of edgecil bench with --results",
            hint=f"edgecil report-memory --plot {plot} --results bench/quick",
        )
    if results is not None and plot is None and protocol is None:
        raise UsageError("--results goes with --protocol or --plot")


def _plot(output: Output, plot: Path, results: Path) -> None:
    from edgecil.reporting.plot import plot_memory

    made = plot_memory(results, plot)
    output.result(made.to_json(), value_only=str(plot))
    if not output.for_people:
        return
    columns = [Column("method"), Column("kept", right=True), Column("average", right=True),
               Column("seeds", right=True)]  # fmt: skip
    rows = [
        [p.method, format_bytes(p.kept_bytes), percent(p.average), str(p.seeds)]
        for p in made.points
    ]
    output.table(columns, rows)
    output.print()
    output.pairs([("figure", short(plot))])


def _show(output: Output, report: MemoryReport) -> None:
    columns = [
        Column("method"), Column("kept", right=True), Column("training", right=True),
        Column("basis"),
    ]  # fmt: skip
    output.table(columns, [cells for row in report.rows for cells in _rows(row)])
    output.print()
    output.pairs(
        [
            ("planned", f"with {planned_with(report.planned_with)}"),
            ("kept", "bytes carried to the next increment, beside the classifier"),
            ("training", "teachers, gradients, momentum: only while an increment is learned"),
            ("classifier", f"{format_bytes(report.classifier_bytes)}, which every method has"),
        ]
    )
    for text in report.notes:
        output.note(text)


def planned_with(assumed: Mapping[str, Any]) -> str:
    """Return in words how many exemplars a plan counts, and as what they are stored."""
    budget, codec, side = (assumed[key] for key in ("budget", "codec", "side"))
    stored = f"as {CODECS.get(codec, codec)} of {side} x {side} pixels"
    if budget["bytes"] is not None:
        return f"as many exemplars as {format_bytes(budget['bytes'])} hold, {stored}"
    if budget["per_class"] is not None:
        return f"{count(budget['per_class'], 'exemplar')} per class {stored}"
    if budget["total"] is not None:
        return f"{count(budget['total'], 'exemplar')} in all {stored}"
    return f"every image as an exemplar, {stored}"


def _rows(row: MethodMemory) -> list[list[str]]:
    """Return a line for the method and one for each of its fields."""
    kept = format_bytes(row.kept_bytes)
    training = "not known" if row.training_bytes is None else format_bytes(row.training_bytes)
    basis = "measured: in use" if row.basis == "measured" else "plan" if row.exact else "at most"
    basis += ", baseline" if row.method == BASELINE else ""
    fields = [[f"  {name}", format_bytes(size), "", ""] for name, size in row.fields]
    return [[row.method, kept, training, basis], *fields]
