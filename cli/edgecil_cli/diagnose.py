"""``edgecil diagnose``: how a version sees old and new classes, as figures and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecil.units import count
from edgecil_cli._options import (
    EXPERT,
    DeviceOption,
    JsonOption,
    QuietOption,
    VersionOption,
    WorkspaceOption,
    value,
)
from edgecil_cli._output import Output, percent, short
from edgecil_cli._progress import listening
from edgecil_cli._tables import Column

if TYPE_CHECKING:
    from edgecil.diagnosis.measures import Diagnosis

EPILOG = """\
Examples:

  edgecil diagnose --test-data test/

  edgecil diagnose --test-data test/ --new-data more/ --version 2 -o figures/

  edgecil diagnose --test-data test/ --synthetic 200
"""


def diagnose(
    test_data: Annotated[Path, value("Test images of all classes, in class folders.", "DIR")],
    new_data: Annotated[
        Path | None, value("Images of the new classes; default: test images.", "DIR")
    ] = None,
    synthetic: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="Make so many images of the old classes."),
    ] = None,
    output_folder: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="For the figures; default: diagnosis-vN."
        ),
    ] = None,
    version: VersionOption = None,
    workspace: WorkspaceOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    synthetic_steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Steps of synthesis; default: as the method has them.",
            rich_help_panel=EXPERT,
        ),
    ] = None,
    seed: Annotated[int, value("Of the synthetic images.", "N", EXPERT)] = 0,
) -> None:
    """Draw what a version confuses, where it looks and drifts."""
    output = Output("diagnose", as_json=as_json, quiet=quiet)
    from edgecil.diagnosis.run import diagnose as run

    with listening(output) as listener:
        found = run(
            test_data, new_data=new_data, workspace=workspace, version=version,
            output=output_folder, synthetic=synthetic or 0, steps=synthetic_steps, seed=seed,
            device=device, listener=listener,
        )  # fmt: skip
    folder = found.files[-1].parent
    output.result({**found.to_json(), "path": folder}, value_only=str(folder))
    if output.for_people:
        _show(output, found, folder)


def _show(output: Output, found: Diagnosis, folder: Path) -> None:
    images = count(int(found.confusion.sum()), "test image")
    output.print(f"version {found.version}: {percent(found.top1)} of {images} are right")
    if found.distances:
        output.print()
        columns = [
            Column("from real old to"), Column("images", right=True), Column("MID", right=True),
            Column("MMD²", right=True),
        ]  # fmt: skip
        output.table(
            columns,
            [
                (row.sample, f"{row.images:,}", _figure(row.mid), _figure(row.mmd_squared))
                for row in found.distances
            ],
        )
    if found.drift:
        output.print()
        columns = [
            Column("since version"), Column("classes", right=True), Column("MID", right=True),
            Column("cosine", right=True), Column("attention", right=True),
        ]  # fmt: skip
        output.table(
            columns,
            [
                (
                    str(row.version), str(row.classes), _figure(row.mid), _figure(row.cosine),
                    _figure(row.attention),
                )
                for row in found.drift
            ],
        )  # fmt: skip
    output.print()
    drawn = ", ".join(path.name for path in found.files if path.suffix != ".svg")
    output.pairs([("in", short(folder)), ("files", drawn)])


def _figure(number: float) -> str:
    return "—" if number != number else f"{number:.3g}"
