"""``edgecil methods``: what learning methods there are, and what their options do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from edgecil import cards, registry
from edgecil_cli._options import JsonOption, QuietOption, complete_method
from edgecil_cli._output import PROSE, Output
from edgecil_cli._tables import wrap

EPILOG = """\
Examples:

  edgecil methods

  edgecil methods lwm
"""


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Show this method's options and presets.",
            autocompletion=complete_method,
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the learning methods, or show one with its options."""
    output = Output("methods", as_json=as_json, quiet=quiet)
    if name is None:
        _list(output)
    else:
        _show(output, name)


def _list(output: Output) -> None:
    known = list(registry.methods().values())
    rows = [{"name": m.name, "kind": m.kind, "summary": m.summary} for m in known]
    output.result({"methods": rows}, value_only="\n".join(m.name for m in known))
    if output.for_people:
        names = [", ".join(_written(m)) for m in known]
        output.pairs([(n, m.summary) for n, m in zip(names, known, strict=True)])
        output.next(f"edgecil methods {known[0].name}")


def _written(method: registry.MethodInfo) -> list[str]:
    """Return how a method is named in a command: alone, after a host, or either."""
    alone = [method.name] if method.kind == "method" else []
    laid = [f"host+{method.name}"] if method.plugs else []
    return alone + laid


def _show(output: Output, name: str) -> None:
    found = cards.card(name)
    description = found.description.replace("``", "")
    rows = found.options
    answer = {
        "name": name,
        "description": description,
        "options": rows,
        "presets": found.presets,
        "papers": found.papers,
    }
    output.result(answer, value_only="\n".join(row["name"] for row in rows))
    if not output.for_people:
        return
    width = min(output.width, PROSE)
    for paragraph in description.split("\n\n"):
        output.print("\n".join(wrap(" ".join(paragraph.split()), width)))
        output.print()
    if rows:
        output.pairs([(f"{r['name']} = {cards.text(r['default'])}", _meaning(r)) for r in rows])
    else:
        output.print("no options")
    if found.presets:
        output.print()
        output.pairs([(f"preset {k}", cards.preset_text(v)) for k, v in found.presets.items()])
    if found.papers:
        output.print()
        output.pairs([("paper", paper) for paper in found.papers])
    # One that must be given, a folder, goes before those that may.
    some = sorted(rows, key=lambda row: row["default"] != "")[:1]
    example = "".join(f" --set {r['name']}={cards.text(r['default']) or 'DIR'}" for r in some)
    output.next(f"edgecil learn --new-data dir/ --method {name}{example}")


def _meaning(option: Mapping[str, Any]) -> str:
    return "\n".join(part for part in (option["help"], option["range"]) if part)
