"""What a method says about itself: description, options, presets, paper. All from its own file."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecil import registry


@dataclass(frozen=True)
class Card:
    """A method, or ``host+plug-in``, as its files declare it."""

    name: str
    description: str
    """Paragraphs of Markdown: the docstrings of its files."""
    options: tuple[Mapping[str, Any], ...]
    """``part``, ``name``, ``type``, ``default``, ``low``, ``high``, ``choices``, ``help``,
    ``range`` of each."""
    presets: Mapping[str, Mapping[str, Any]]
    papers: tuple[str, ...]


def card(name: str) -> Card:
    """Return the card of a method.

    Raises:
        UsageError: it is unknown (the nearest names are offered), or a plug-in over a host that it
            does not fit.
    """
    if "+" in name:
        registry.build(name)
    fields = registry.option_fields(name)
    options = [{"part": part, **_option(f)} for part, known in fields.items() for f in known]
    presets = {key: _preset(value) for key, value in registry.presets(name).items()}
    papers = [written for part in fields if (written := paper(part))]
    description = "\n\n".join(_docstring(part) for part in fields)
    return Card(name, description, tuple(options), presets, tuple(dict.fromkeys(papers)))


def paper(part: str) -> str:
    """Return authors, title and year of a method's or plug-in's paper, or nothing."""
    module = importlib.import_module(registry.methods()[part].module)
    return str(getattr(module, "PAPER", ""))


def text(value: Any) -> str:
    """Return a setting as it is written after ``--set``."""
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def preset_text(preset: Mapping[str, Any]) -> str:
    """Return a preset in one line."""
    training = preset["training"]
    parts = [f"{training['epochs']} epochs", f"batch {training['batch_size']}"]
    parts += [f"lr {training['optim']['lr']:g}"]
    parts += [f"{key}={text(value)}" for key, value in preset["options"].items()]
    parts += [preset["arch"]] if "arch" in preset else []
    return ", ".join(parts)


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


def _preset(preset: Any) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(preset).items() if v is not None}
