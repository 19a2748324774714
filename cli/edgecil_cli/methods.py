"""``edgecil methods``: what learning methods there are, and what their options do."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edgecil import registry
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
        names = [m.name if m.kind == "method" else f"host+{m.name}" for m in known]
        output.pairs([(n, m.summary) for n, m in zip(names, known, strict=True)])
        output.next(f"edgecil methods {known[0].name}")


def _show(output: Output, name: str) -> None:
    options = {
        part: [_option(field) for field in fields]
        for part, fields in registry.option_fields(name).items()
    }
    presets = {key: _preset(value) for key, value in registry.presets(name).items()}
    description = "\n\n".join(_docstring(part) for part in options).replace("``", "")
    rows = [{"part": part, **option} for part, known in options.items() for option in known]
    answer = {"name": name, "description": description, "options": rows, "presets": presets}
    output.result(answer, value_only="\n".join(row["name"] for row in rows))
    if not output.for_people:
        return
    width = min(output.width, PROSE)
    for paragraph in description.split("\n\n"):
        output.print("\n".join(wrap(" ".join(paragraph.split()), width)))
        output.print()
    if rows:
        output.pairs([(f"{r['name']} = {_text(r['default'])}", _meaning(r)) for r in rows])
    else:
        output.print("no options")
    if presets:
        output.print()
        output.pairs([(f"preset {key}", _preset_text(v)) for key, v in presets.items()])
    example = f" --set {rows[0]['name']}={_text(rows[0]['default'])}" if rows else ""
    output.next(f"edgecil learn --new-data dir/ --method {name}{example}")


def _meaning(option: Mapping[str, Any]) -> str:
    return "\n".join(part for part in (option["help"], option["range"]) if part)


def _docstring(part: str) -> str:
    """Return the docstring of a method's file, without running it."""
    spec = importlib.util.find_spec(registry.methods()[part].module)
    assert spec is not None and spec.origin is not None
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or part


def _option(field: dataclasses.Field[Any]) -> dict[str, Any]:
    meta = field.metadata
    return {
        "name": field.name,
        "type": type(field.default).__name__,
        "default": field.default,
        "low": meta["low"],
        "high": meta["high"],
        "choices": meta["choices"],
        "help": meta["help"],
        "range": _range(meta, field.default),
    }


def _range(meta: Mapping[str, Any], default: Any) -> str:
    """Return the values that an option takes, in words."""
    if meta["choices"]:
        return " or ".join(meta["choices"])
    if isinstance(default, bool):
        return "true or false"
    low, high = meta["low"], meta["high"]
    if low is not None and high is not None:
        return f"from {low:g} to {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}" if high else ""


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def _preset(preset: Any) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(preset).items() if v is not None}


def _preset_text(preset: Mapping[str, Any]) -> str:
    training = preset["training"]
    parts = [f"{training['epochs']} epochs", f"batch {training['batch_size']}"]
    parts += [f"lr {training['optim']['lr']:g}"]
    parts += [f"{key}={_text(value)}" for key, value in preset["options"].items()]
    parts += [preset["arch"]] if "arch" in preset else []
    return ", ".join(parts)
