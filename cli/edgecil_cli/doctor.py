"""``edgecil doctor``: what is wrong with this installation, and what to do."""

from __future__ import annotations

import typer

from edgecil.workspace import Workspace
from edgecil_cli._options import JsonOption, QuietOption, WorkspaceOption
from edgecil_cli._output import Output
from edgecil_runtime.doctor import WRONG

EPILOG = """\
Examples:

  edgecil doctor

  edgecil doctor --json
"""


def doctor(
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Look for what is wrong here and say what to do."""
    output = Output("doctor", as_json=as_json, quiet=quiet)
    from edgecil import doctor as library

    findings = library.examine(Workspace.find(workspace))
    wrong = [finding for finding in findings if finding.status == WRONG]
    answer = {"fit": not wrong, "findings": [finding._asdict() for finding in findings]}
    output.result(answer, value_only=str(len(wrong)))
    if output.for_people:
        output.pairs(
            [
                (f"{finding.name}", _text(finding.status, finding.found, finding.advice))
                for finding in findings
            ]
        )
        output.print()
        output.print("something is wrong, see above" if wrong else "nothing is wrong")
    if wrong:
        raise typer.Exit(1)


def _text(status: str, found: str, advice: str | None) -> str:
    first = found if status == "ok" else f"{status}: {found}"
    return first if advice is None else f"{first}\n-> {advice}"
