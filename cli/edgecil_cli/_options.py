"""Options that mean the same in every command, and what completes them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgecil import registry
from edgecil.errors import EdgecilError
from edgecil.exporting import targets
from edgecil.learning.request import LearnRequest
from edgecil.workspace import Workspace

EXPERT = "Expert options"
MEMORY = "Memory kept between increments (one of the three)"


def flag(name: str, help: str, panel: str | None = None) -> Any:
    """Return an option without a value; the help shows no type for it."""
    return typer.Option(name, help=help, metavar=" ", rich_help_panel=panel)


def value(help: str, metavar: str, panel: str | None = None, complete: Any = None) -> Any:
    """Return an option with a value that the help calls ``metavar``."""
    return typer.Option(help=help, metavar=metavar, rich_help_panel=panel, autocompletion=complete)


def complete_method(incomplete: str) -> list[tuple[str, str]]:
    """Return the methods, or after ``host+`` the plug-ins, that begin so, with summaries."""
    host, plus, begun = incomplete.rpartition("+")
    kind = "plug-in" if plus else "method"
    return [
        (f"{host}{plus}{name}", info.summary)
        for name, info in registry.methods().items()
        if info.kind == kind and name.startswith(begun)
    ]


def complete_option(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the options that begin so, as ``NAME=``, of the method that ``learn`` would take."""
    try:
        fields = registry.option_fields(ctx.params.get("method") or _method_in_use(ctx))
    except EdgecilError:
        return []
    return [
        (f"{field.name}=", field.metadata["help"])
        for part in fields.values()
        for field in part
        if field.name.startswith(incomplete)
    ]


def _method_in_use(ctx: typer.Context) -> str:
    workspace = Workspace.find(ctx.params.get("workspace"))
    request = LearnRequest("").inherited(workspace.manifest() if workspace.exists() else None)
    assert request.method is not None
    return request.method


def complete_version(incomplete: str) -> list[tuple[str, str]]:
    """Return the versions of the workspace in reach, with method and number of classes."""
    workspace = Workspace.find()
    found = []
    for number in workspace.versions():
        try:
            manifest = workspace.manifest(number)
        except EdgecilError:
            continue
        found.append((str(number), f"{manifest.method}, {len(manifest.classes)} classes"))
    return [item for item in found if item[0].startswith(incomplete)]


def complete_target(incomplete: str) -> list[tuple[str, str]]:
    """Return the devices that bundles can be exported for, with their names in full."""
    known = [targets.load(name) for name in targets.names() if name.startswith(incomplete)]
    return [(target.name, target.title) for target in known]


def complete_device(incomplete: str) -> list[str]:
    """Return the usual names of devices."""
    return [name for name in ("auto", "cpu", "cuda:0") if name.startswith(incomplete)]


WorkspaceOption = Annotated[
    Path | None,
    value("Default: .edgecil here or in a parent folder, or EDGECIL_WORKSPACE.", "DIR"),
]
DeviceOption = Annotated[
    str, value("Where to compute: cpu, cuda:0, auto.", "DEVICE", complete=complete_device)
]
VersionOption = Annotated[
    int | None, value("A version other than the current one.", "N", complete=complete_version)
]
JsonOption = Annotated[bool, flag("--json", "Answer with one JSON object.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", metavar=" ", help="Print the one value only.")
]
