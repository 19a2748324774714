"""``edgecil gc``, ``forget`` and ``rename``: what is done to versions after they were learned."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from edgecil.errors import EdgecilError, UsageError
from edgecil.units import count, format_bytes
from edgecil.workspace import Workspace
from edgecil_cli._options import JsonOption, QuietOption, WorkspaceOption, flag
from edgecil_cli._output import Output, short
from edgecil_cli._tables import Column

GC_EPILOG = """\
Examples:

  edgecil gc --dry-run

  edgecil gc --keep 3 --yes
"""
FORGET_EPILOG = """\
Examples:

  edgecil forget wren --yes

  edgecil forget photos/wren/017.jpg --yes
"""
RENAME_EPILOG = """\
Examples:

  edgecil rename wren "eurasian wren"
"""


def complete_class(incomplete: str) -> list[str]:
    """Return the classes of the workspace in reach that begin so."""
    try:
        names = Workspace.find().manifest().names
    except EdgecilError:
        return []
    return [name for name in names if name.startswith(incomplete)]


YesOption = Annotated[bool, flag("--yes", "Do it: it cannot be undone.")]


def _sure(yes: bool, command: str, what: str) -> None:
    if not yes:
        raise UsageError(f"it removes {what}, and cannot be undone", hint=command)


def gc(
    keep: Annotated[
        int, typer.Option(metavar="N", help="Versions to keep, from the current one back.")
    ] = 2,
    dry_run: Annotated[bool, flag("--dry-run", "Say what would go; remove nothing.")] = False,
    yes: YesOption = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Remove the files of old versions."""
    output = Output("gc", as_json=as_json, quiet=quiet)
    from edgecil import upkeep

    place = Workspace.find(workspace)
    found = upkeep.unneeded(place, keep)
    if found and not dry_run:
        _sure(yes, place.command(f"edgecil gc --keep {keep} --yes"), _of_versions(found))
        found = upkeep.collect(place, keep)
    total = sum(found.values())
    versions = [{"version": number, "bytes": size} for number, size in found.items()]
    answer = {"removed": not dry_run, "versions": versions, "bytes": total}
    output.result(answer, value_only=str(total))
    if not output.for_people:
        return
    if not found:
        output.print("nothing to remove")
        return
    output.table(
        [Column("version", right=True), Column("bytes", right=True)],
        [[str(number), format_bytes(size)] for number, size in found.items()],
    )
    output.print()
    output.print(f"{format_bytes(total)} {'would be freed' if dry_run else 'freed'}")
    output.note("the records of removed versions stay; exported bundles need no version")


def _of_versions(sizes: Mapping[int, int]) -> str:
    """Return what goes, as in ``the files of version 1 (700 kB)``."""
    each = [f"{number} ({format_bytes(size)})" for number, size in sizes.items()]
    if len(each) == 1:
        return f"the files of version {each[0]}"
    return f"the files of versions {', '.join(each)}: {format_bytes(sum(sizes.values()))} in all"


def forget(
    what: Annotated[
        str,
        typer.Argument(
            metavar="CLASS|FILE",
            help="A class, or an image file: all that is kept of it.",
            autocompletion=complete_class,
            show_default=False,
        ),
    ],
    yes: YesOption = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Remove kept images of a class, or one image."""
    output = Output("forget", as_json=as_json, quiet=quiet)
    from edgecil import upkeep

    place = Workspace.find(workspace)
    counts = upkeep.forget(place, what, trial=not yes)
    images = count(sum(counts.values()), "kept image")
    versions = "version" if len(counts) == 1 else "versions"
    removes = f"{images} from {versions} {', '.join(map(str, counts))}"
    _sure(yes, place.command(f"edgecil forget {shlex.quote(what)} --yes"), removes)
    records = {number: place.manifest(number).forgotten[-1] for number in counts}
    answer = {"versions": [{"version": n, **record} for n, record in records.items()]}
    output.result(answer, value_only=str(sum(counts.values())))
    if not output.for_people:
        return
    for number, removed in counts.items():
        output.print(f"version {number}: {count(removed, 'kept image')} removed")
    output.note(
        "weights and class means that were learned from them stay; so do your own files, "
        "backups and exported bundles"
    )


def rename(
    old: Annotated[
        str,
        typer.Argument(help="A class.", autocompletion=complete_class, show_default=False),
    ],
    new: Annotated[str, typer.Argument(help="What to call it.", show_default=False)],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Give a class another name, in a new version."""
    output = Output("rename", as_json=as_json, quiet=quiet)
    from edgecil import upkeep

    place = Workspace.find(workspace)
    before = place.current()
    manifest = upkeep.rename(place, old, new)
    path: Path = place.path(manifest.version).absolute()
    answer = {"version": manifest.version, "was": before, "classes": manifest.names, "path": path}
    output.result(answer, value_only=str(manifest.version))
    if output.for_people:
        output.print(f"version {manifest.version}: as version {before}, with {old} called {new}")
        output.pairs([("path", short(path))])
        if manifest.test is not None:
            output.note(f"folders of test images must call it {new!r} too")
        output.next(place.command("edgecil export"), place.command(f"edgecil rollback {before}"))
