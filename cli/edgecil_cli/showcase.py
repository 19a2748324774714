"""``edgecil demo``: the whole path on bundled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecil.units import format_bytes
from edgecil_cli._options import JsonOption, QuietOption
from edgecil_cli._output import Output, percent, short
from edgecil_cli._progress import listening
from edgecil_cli._tables import Column

if TYPE_CHECKING:
    from edgecil.demo import DemoResult

EPILOG = """\
Examples:

  edgecil demo

  edgecil demo -o my-demo/
"""


def demo(
    output_dir: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the demo's files go.")
    ] = Path("demo"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Try the whole path on handwritten digits; no download."""
    output = Output("demo", as_json=as_json, quiet=quiet)
    with listening(output) as listener:
        from edgecil import demo as library

        found = library.run(output_dir, listener)
    output.result(found.to_json(), value_only=str(found.output.absolute()))
    if output.for_people:
        _show(output, found)
        output.next(
            "edgecil learn --method lwm --new-data dir/",
            "edgecil report-memory",
            "edgecil export",
        )


def _show(output: Output, found: DemoResult) -> None:
    kept = {row.method: format_bytes(row.kept_bytes) for row in found.memory.rows}
    steps = max(len(values) for values in found.accuracy.values())
    output.print("accuracy in % on all digits learned so far, after each increment")
    output.print()
    output.table(
        [
            Column("method"),
            *(Column(f"{2 * step} digits", right=True) for step in range(1, steps + 1)),
            Column("kept", right=True),
        ],
        [
            [name, *(f"{100 * value:.1f}" for value in values), kept.get(name, "")]
            for name, values in found.accuracy.items()
        ],
    )
    output.print()
    report, device = found.export, found.device
    size = format_bytes(report.file_bytes["model.onnx"])
    memory = f"{format_bytes(device['peak_rss_bytes'])} at its peak"
    output.pairs(
        [
            ("bundle", f"{size} as {report.precision}, {format_bytes(report.fp32_bytes)} as fp32"),
            ("on device", f"{percent(device['top1'])} of {device['n']} images, {memory}"),
            ("plot", short(found.plot.absolute())),
            ("path", short(found.bundle.absolute())),
        ]
    )
