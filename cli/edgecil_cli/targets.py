"""``edgecil targets``: what devices bundles can be exported for."""

from __future__ import annotations

from typing import Annotated

import typer

from edgecil.exporting import targets as profiles
from edgecil.exporting.targets import Target
from edgecil.units import format_bytes
from edgecil_cli._options import JsonOption, QuietOption, complete_target
from edgecil_cli._output import Output
from edgecil_cli._tables import Column

EPILOG = """\
Examples:

  edgecil targets

  edgecil targets rpi4
"""


def targets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Show this device's profile.",
            autocompletion=complete_target,
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the devices to export for, or show one."""
    output = Output("targets", as_json=as_json, quiet=quiet)
    if name is None:
        _list(output)
    else:
        _show(output, profiles.load(name))


def _list(output: Output) -> None:
    known = [profiles.load(name) for name in profiles.names()]
    answer = {"targets": [target.to_json() for target in known]}
    output.result(answer, value_only="\n".join(target.name for target in known))
    if output.for_people:
        columns = [Column("target"), Column("device"), Column("memory", right=True)]
        columns += [Column("onnxruntime", right=True)]
        rows = [(t.name, t.title, _figure(t, "memory"), t.onnxruntime) for t in known]
        output.table(columns, rows)
        output.print()
        output.print("~ not verified on the device")
        output.next(f"edgecil targets {known[0].name}", f"edgecil export --target {known[0].name}")


def _show(output: Output, target: Target) -> None:
    output.result(target.to_json(), value_only=target.name)
    if not output.for_people:
        return
    yes = {True: "yes", False: "no"}
    rows = [
        ("device", target.title),
        ("cpu", f"{_mark(target, 'cpu')}{target.cpu}, {target.arch}"),
        ("int8 units", f"{_mark(target, 'isa')}{' '.join(target.isa) or 'none'}"),
        ("ram", _figure(target, "ram")),
        ("memory", f"{_figure(target, 'memory')} for the process that runs the model"),
        ("flash", f"{_figure(target, 'flash')} for all that is kept of the model"),
        ("python", f"{_mark(target, 'python')}{target.python}"),
        ("onnxruntime", f"up to {target.onnxruntime}"),
        ("threads", f"{_mark(target, 'threads')}{target.threads}"),
        ("7-bit weights", yes[target.reduce_range]),
        ("resizes", "in the graph" if target.resize_in_graph else "before the graph"),
        ("images", f"up to {target.max_pixels:,} pixels"),
        ("note", target.note),
        ("~", "not verified on the device"),
    ]
    output.pairs(rows)
    output.next(f"edgecil export --target {target.name}")


def _mark(target: Target, field: str) -> str:
    return "~ " if field in target.unverified else ""


def _figure(target: Target, field: str) -> str:
    return _mark(target, field) + format_bytes(getattr(target, field))
