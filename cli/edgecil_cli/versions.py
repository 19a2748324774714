"""``edgecil status``, ``history`` and ``rollback``: the versions of a workspace; no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgecil.errors import WorkspaceError
from edgecil.learning.request import LearnRequest
from edgecil.memory.fields import IMAGES
from edgecil.units import count, format_bytes
from edgecil.workspace import VersionManifest, Workspace
from edgecil_cli._options import JsonOption, QuietOption, WorkspaceOption, complete_version
from edgecil_cli._output import Output, percent, short
from edgecil_cli._summary import fields_text, overall
from edgecil_cli._tables import Column

STATUS_EPILOG = """\
Examples:

  edgecil status

  edgecil status --json
"""
HISTORY_EPILOG = """\
Examples:

  edgecil history

  edgecil history --json
"""
ROLLBACK_EPILOG = """\
Examples:

  edgecil rollback

  edgecil rollback 3
"""


def _open(
    command: str, workspace: Path | None, as_json: bool, quiet: bool
) -> tuple[Output, Workspace]:
    """Return how a command answers, and the workspace that it is about."""
    return Output(command, as_json=as_json, quiet=quiet), Workspace.find(workspace)


def _summary(manifest: VersionManifest) -> dict[str, Any]:
    return {
        "version": manifest.version,
        "parent": manifest.parent,
        "created": manifest.created,
        "method": manifest.method,
        "classes": len(manifest.classes),
        "classes_new": manifest.groups[-1],
        "accuracy": overall(manifest),
        "kept_bytes": manifest.kept["bytes"],
        "classifier_bytes": manifest.classifier_bytes,
    }


def status(
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the current version and an interrupted run."""
    output, place = _open("status", workspace, as_json, quiet)
    waits = place.waits
    if waits and not place.exists():
        manifest = None
    else:
        manifest = place.manifest()
    answer = {
        "workspace": place.root,
        "interrupted_run": waits,
        "current": None if manifest is None else _summary(manifest),
        "groups": [] if manifest is None else list(manifest.groups),
        "arch": None if manifest is None else manifest.net["arch"],
        "image_size": None if manifest is None else manifest.input.size,
    }
    output.result(answer, value_only="0" if manifest is None else str(manifest.version))
    if not output.for_people:
        return
    rows = [("workspace", short(place.root))]
    rows += [("version", "none yet")] if manifest is None else _rows(place, manifest)
    if waits:
        began = "" if place.resumable else ", which began from another version"
        rows.append(("run", f"an interrupted run waits{began}: {_asked(place)}"))
    output.pairs(rows)
    afresh = f"edgecil learn {'--discard ' if waits else ''}--new-data dir/"
    again = ["edgecil learn --resume"] if place.resumable else []
    output.next(*map(place.command, [*again, afresh] if waits else [afresh]))


def _rows(place: Workspace, manifest: VersionManifest) -> list[tuple[str, str]]:
    groups = manifest.groups
    classes = count(len(manifest.classes), "class")
    if len(groups) > 1:
        classes += f" in {len(groups)} increments: {' + '.join(map(str, groups))}"
    versions = place.versions()
    kept = fields_text(manifest.kept["bytes"], manifest.kept["fields"])
    if place.memory_gone(manifest.version):
        kept = f"{_lost(manifest)}; there were {kept}"
    return [
        ("version", f"{manifest.version} of {len(versions)}, made {_when(manifest)}"),
        ("method", manifest.method),
        ("classes", classes),
        ("accuracy", percent(overall(manifest))),
        ("network", f"{manifest.net['arch']}, {manifest.input.size} x {manifest.input.size}"),
        ("classifier", format_bytes(manifest.classifier_bytes)),
        ("kept", kept),
    ]


def _asked(place: Workspace) -> str:
    """Return what an interrupted run learns, where its record can be read."""
    try:
        request, _ = LearnRequest.load(place.run)
    except WorkspaceError as error:
        return error.message
    return f"{request.method} on {short(Path(request.new_data))}"


def _lost(manifest: VersionManifest) -> str:
    """Return what to call kept memory of a version that is not stored any more."""
    images = any(field["name"] == IMAGES for field in manifest.kept["fields"])
    return "images gone" if images else "memory gone"


def _when(manifest: VersionManifest) -> str:
    return manifest.created[:16].replace("T", " ") + " UTC"


def history(
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List all versions, oldest first."""
    output, place = _open("history", workspace, as_json, quiet)
    current = place.current()
    manifests = [place.manifest(number) for number in place.versions()]
    complete = {number: place.complete(number) for number in place.versions()}
    lost = {number: place.memory_gone(number) for number in place.versions()}
    answer = [
        {
            **_summary(m),
            "options": m.options,
            "training": m.training,
            "edgecil_version": m.edgecil_version,
            "current": m.version == current,
            "complete": complete[m.version],
            "memory_gone": lost[m.version],
        }
        for m in manifests
    ]
    output.result(
        {"versions": answer, "current": current},
        value_only="\n".join(str(m.version) for m in manifests),
    )
    if output.for_people:
        columns = [
            Column("version"), Column("from", right=True), Column("method"),
            Column("classes", right=True), Column("accuracy", right=True),
            Column("kept", right=True), Column("size", right=True), Column("made (UTC)"),
        ]  # fmt: skip
        rows = [_row(m, current, complete[m.version], lost[m.version]) for m in manifests]
        output.table(columns, rows)
        if not all(complete.values()):
            output.note("gone: removed by edgecil gc, only the record is left")
        words = {_lost(m) for m in manifests if lost[m.version] and complete[m.version]}
        if words:
            output.note(
                f"{', '.join(sorted(words))}: stored for the last two increments only; such a "
                "version serves for evaluation and export"
            )


def _row(manifest: VersionManifest, current: int, complete: bool, lost: bool) -> list[str]:
    new, seen = manifest.groups[-1], len(manifest.classes)
    top1 = overall(manifest)
    return [
        f"{manifest.version} (now)" if manifest.version == current else str(manifest.version),
        "" if manifest.parent is None else str(manifest.parent),
        manifest.method,
        f"{seen} (+{new})" if new < seen else str(seen),
        "-" if top1 is None else percent(top1),
        _lost(manifest) if lost else format_bytes(manifest.kept["bytes"]),
        format_bytes(manifest.classifier_bytes) if complete else "gone",
        manifest.created[5:16].replace("T", " "),
    ]


def rollback(
    version: Annotated[
        int | None,
        typer.Argument(
            help="Default: the version that the current one was made from.",
            metavar="[VERSION]",
            autocompletion=complete_version,
            show_default=False,
        ),
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make an earlier version current again."""
    output, place = _open("rollback", workspace, as_json, quiet)
    before = place.current()
    with place.locked():
        target = place.rollback(version)
    manifest = place.manifest(target)
    output.result({"current": target, "was": before}, value_only=str(target))
    if output.for_people:
        classes = count(len(manifest.classes), "class")
        output.print(f"current is version {target}, was {before}: {manifest.method}, {classes}")
    if place.memory_gone(target):
        output.note(
            f"the images that version {target} kept are no longer stored: "
            "it serves for evaluation and export"
        )
    if place.waits:
        output.note("an interrupted run waits; it can be resumed from its own version only")
    output.next(place.command(f"edgecil rollback {before}"))
