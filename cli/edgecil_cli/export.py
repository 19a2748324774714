"""``edgecil export``: a version as the bundle that a device installs."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from edgecil.exporting.targets import memory_needed
from edgecil.units import count, format_bytes
from edgecil.workspace import Workspace
from edgecil_cli._options import (
    EXPERT,
    JsonOption,
    QuietOption,
    VersionOption,
    WorkspaceOption,
    complete_target,
    flag,
    value,
)
from edgecil_cli._output import Output, percent, short
from edgecil_cli._progress import listening
from edgecil_cli._tables import Column

if TYPE_CHECKING:
    from edgecil.exporting.report import ExportReport
    from edgecil.exporting.verify import Accuracy

EPILOG = """\
Examples:

  edgecil export

  edgecil export -o build/ --test-data test/ --max-drop 0.5

  edgecil export --calibrate photos/ --name birds
"""


class Precision(StrEnum):
    """Arithmetic of the exported graph."""

    int8 = "int8"
    fp32 = "fp32"


def export(
    output_dir: Annotated[
        Path, Option("--output", "-o", metavar="DIR", help="Where the bundle's folder is made.")
    ] = Path("."),
    test_data: Annotated[
        Path | None, value("Labelled images: the accuracy lost becomes a gate.", "DIR")
    ] = None,
    precision: Annotated[
        Precision, value("Arithmetic of the graph: int8 or fp32.", "NAME")
    ] = Precision.int8,
    name: Annotated[str, value("Name of the bundle; its folder is NAME-vN.", "NAME")] = (
        "classifier"
    ),
    force: Annotated[bool, flag("--force", "Replace a bundle of this name.")] = False,
    version: VersionOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    target: Annotated[
        str | None,
        value(
            "A device: fills the choices, and fails when it does not fit.",
            "NAME",
            complete=complete_target,
        ),
    ] = None,
    delta_from: Annotated[
        str | None,
        value("Also write a delta from this earlier version or bundle.", "VERSION|DIR"),
    ] = None,
    calibrate: Annotated[
        str,
        value(
            "Ranges recorded while learning, images made from the model, or a folder of them.",
            "recorded|synthetic|DIR",
            EXPERT,
        ),
    ] = "recorded",
    max_drop: Annotated[
        float, value("Fail when int8 loses more accuracy, in points.", "X", EXPERT)
    ] = 1.0,
    min_agreement: Annotated[
        float, value("Fail when int8 equals fp32 on a smaller share.", "X", EXPERT)
    ] = 0.9,
    fixed_input: Annotated[
        bool, flag("--fixed-input", "No resize in the graph: images come at its size.", EXPERT)
    ] = False,
) -> None:
    """Write the version as a verified bundle for devices."""
    output = Output("export", as_json=as_json, quiet=quiet)
    with listening(output) as listener:
        from edgecil import api

        report = api.export(
            workspace=workspace, version=version, output=output_dir, name=name,
            precision=precision.value, calibrate=calibrate, fixed_input=fixed_input,
            test_data=test_data, max_drop=max_drop, min_agreement=min_agreement,
            delta_from=int(delta_from) if delta_from and delta_from.isdigit() else delta_from,
            target=target, force=force, listener=listener,
        )  # fmt: skip
    path = report.path.absolute()
    output.result({**report.to_json(), "path": path}, value_only=str(path))
    if output.for_people:
        added = Workspace.find(workspace).manifest(report.version).groups[-1]
        _show(output, report, path, added)


def _show(output: Output, report: ExportReport, path: Path, added: int) -> None:
    precision, classes = report.precision, count(len(report.labels), "class")
    output.print(f"bundle {path.name}: version {report.version}, {classes}, {precision}")
    output.print()
    if report.accuracy is not None:
        columns = ["fp32", precision, "points lost"] if precision != "fp32" else ["fp32"]
        output.table(
            [Column("classes"), *(Column(title, right=True) for title in columns)],
            [
                _accuracy(name, group)[: 1 + len(columns)]
                for name, group in report.accuracy.items()
                # Where an increment added no class, "new" are those of the one before it.
                if added or name == "all"
            ],
        )
        output.print()
    rows = [*_size(report), *_gates(report), *_cost(report), ("path", short(path))]
    output.pairs([*rows, *_target(report), *_delta(report)])
    where = shlex.quote(short(path))
    limit = "96MB" if report.target is None else f"{report.target.memory // 10**6}MB"
    ships = where if report.delta is None else shlex.quote(short(report.delta.path.absolute()))
    output.next(
        f"edgecil-device install {ships}",
        f"edgecil-device info {where}",
        f"edgecil-device evaluate {where} test-images/ --memory-limit {limit}",
    )


def _accuracy(name: str, group: Accuracy) -> list[str]:
    return [name, percent(group.fp32), percent(group.shipped), f"{group.drop:.2f}"]


def _size(report: ExportReport) -> list[tuple[str, str]]:
    size = format_bytes(report.file_bytes["model.onnx"])
    if report.precision == "fp32":
        return [("model", size)]
    smaller = report.fp32_bytes / report.file_bytes["model.onnx"]
    return [("model", f"{size}, {smaller:.1f} times less than {format_bytes(report.fp32_bytes)}")]


def _gates(report: ExportReport) -> list[tuple[str, str]]:
    parity = report.parity
    rows = [
        (
            "parity",
            f"within {parity.max_abs_diff:.1e} of torch, {percent(parity.agreement)} same class "
            f"({parity.images} {parity.basis} images)",
        )
    ]
    if report.agreement is not None:
        agreed = report.agreement
        text = f"{percent(agreed.agreement)} same class as fp32 "
        rows.append(("agreement", f"{text}({agreed.images} {agreed.basis} images)"))
    if report.accuracy is None:
        rows.append(("accuracy", "not measured: give --test-data"))
    return rows


def _target(report: ExportReport) -> list[tuple[str, str]]:
    device = report.target
    if device is None:
        return []
    need = memory_needed(device, report.device_memory["peak_rss_bytes"])
    text = f"needs {format_bytes(need)} of {format_bytes(device.memory)} for the whole process"
    return [("target", f"{device.name}: {text}, images up to {device.max_pixels:,} pixels")]


def _delta(report: ExportReport) -> list[tuple[str, str]]:
    delta = report.delta
    if delta is None:
        return []
    share = f"{percent(delta.bytes / delta.full_bytes)} of the {format_bytes(delta.full_bytes)}"
    kind = "" if delta.differences else ", a compressed copy"
    return [
        ("delta", f"{format_bytes(delta.bytes)} from {delta.source}, {share} bundle{kind}"),
        ("", short(delta.path.absolute())),
    ]


def _cost(report: ExportReport) -> list[tuple[str, str]]:
    weights, activations = report.weights_bytes, report.activation_bytes
    latency = ", ".join(f"{value:.2f} ms {name}" for name, value in report.latency_ms.items())
    return [
        (
            "memory",
            f"{format_bytes(weights + activations)}: weights {format_bytes(weights)}, "
            f"activations {format_bytes(activations)}; onnxruntime itself comes on top",
        ),
        ("latency", f"{latency}: per image, one thread, on this host"),
    ]
