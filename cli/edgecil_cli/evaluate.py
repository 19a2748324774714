"""``edgecil evaluate`` and ``edgecil predict``: what a version knows."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from edgecil.errors import DataError
from edgecil.units import count
from edgecil_cli._options import (
    EXPERT,
    DeviceOption,
    JsonOption,
    QuietOption,
    VersionOption,
    WorkspaceOption,
    flag,
)
from edgecil_cli._output import Output, percent
from edgecil_cli._tables import Column
from edgecil_runtime.images import is_image_name

EPILOG = """\
Examples:

  edgecil evaluate test/

  edgecil evaluate test/ --version 2 --json
"""
PREDICT_EPILOG = """\
Examples:

  edgecil predict photo.jpg

  edgecil predict photos/*.jpg -q
"""
_WORST = 5


def evaluate(
    data: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with one folder of images per class.")
    ],
    version: VersionOption = None,
    workspace: WorkspaceOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    skip_bad: Annotated[bool, flag("--skip-bad", "Leave damaged images out.", EXPERT)] = False,
    ignore_unknown: Annotated[
        bool, flag("--ignore-unknown", "Leave out classes the model does not know.", EXPERT)
    ] = False,
) -> None:
    """Measure the accuracy on a folder of labelled images."""
    output = Output("evaluate", as_json=as_json, quiet=quiet)
    from edgecil import api

    found = api.evaluate(
        data, workspace=workspace, version=version, device=device,
        skip_bad=skip_bad, ignore_unknown=ignore_unknown,
    )  # fmt: skip
    values = found.to_json()
    output.result(values, value_only=f"{found.top1:.4f}")
    if not output.for_people:
        return
    output.print(f"{percent(found.top1)} of {count(found.n, 'image')} are right")
    output.print()
    rows = [
        (f"increment {number}", str(group), percent(share))
        for number, (group, share) in enumerate(
            zip(found.groups, found.by_increment(), strict=True), start=1
        )
    ]
    measured = zip(found.groups, values["by_increment"], strict=True)
    if len(rows) > 1 and not any(group and rate is None for group, rate in measured):
        rows = [*rows, ("all", str(len(found.labels)), percent(found.top1))]
    columns = [Column("learned in"), Column("classes", right=True), Column("accuracy", right=True)]
    output.table(columns, rows)
    output.print()
    known = {name: share for name, share in values["per_class"].items() if share is not None}
    worst = sorted(known.items(), key=lambda item: item[1])[:_WORST]
    missed = [f"{percent(share)} {name}" for name, share in worst if share < 1]
    details = [("latency", f"{values['latency_ms']['p50']:.2f} ms per image, in batches")]
    if len(found.labels) > 5:
        details.insert(0, ("top 5", percent(found.top5)))
    if missed:
        details.insert(0, ("worst", "\n".join(missed)))
    output.pairs(details)


def predict(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files.", show_default=False)
    ],
    top: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many classes to name per image.")
    ] = 3,
    version: VersionOption = None,
    workspace: WorkspaceOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Name the class of every image."""
    output = Output("predict", as_json=as_json, quiet=quiet)
    _refuse_folders(images)
    from edgecil import api

    found = api.predict(images, workspace=workspace, version=version, device=device, top=top)
    answers = [
        {
            "path": prediction.path,
            "label": prediction.label,
            "score": prediction.score,
            "best": [{"label": name, "score": score} for name, score in prediction.best],
        }
        for prediction in found
    ]
    output.result(
        {"predictions": answers}, value_only="\n".join(prediction.label for prediction in found)
    )
    if output.for_people:
        rows = [
            (
                str(prediction.path), prediction.label, f"{prediction.score:.3g}",
                ", ".join(f"{name} {score:.3g}" for name, score in prediction.best[1:]),
            )
            for prediction in found
        ]  # fmt: skip
        output.table(
            [Column("image"), Column("class"), Column("score", right=True), Column("then")], rows
        )


def _refuse_folders(images: Sequence[Path]) -> None:
    """Refuse folders, with the pattern that names the images in them."""
    for folder in (path for path in images if path.is_dir()):
        found = sorted(p for p in folder.rglob("*") if is_image_name(p.name))
        pattern = f"*{found[0].suffix}" if found else "*.jpg"
        between = "*/" * (len(found[0].relative_to(folder).parts) - 1) if found else ""
        where = shlex.quote(str(folder))
        raise DataError(
            f"{folder} is a folder: predict takes image files",
            hint=f"give files: {where}/{between}{pattern}",
        )
