"""Options of methods: typed dataclass fields with a range, set from text, refused by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from edgecil.errors import UsageError
from edgecil.spelling import nearest


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    path: bool = False,
) -> Any:
    """Return a dataclass field of a method option with its range ``[low, high]`` or choices.

    With ``path`` its text names a file or folder and is made absolute.
    """
    limits = {"help": help, "low": low, "high": high, "choices": choices, "path": path}
    return field(default=default, metadata=limits)


_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


def _convert(name: str, text: Any, default: Any) -> Any:
    if not isinstance(text, str) or isinstance(default, str):
        return text
    truth = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
    try:
        if isinstance(default, bool):
            return truth[text.lower()]
        return type(default)(text)
    except (KeyError, ValueError):
        raise UsageError(f"option {name}: {text!r} is not {_KINDS[type(default)]}") from None


def _bounds(low: float | None, high: float | None) -> str:
    if high is None:
        return f"at least {low:g}"
    return f"at most {high:g}" if low is None else f"in [{low:g}, {high:g}]"


def make_options(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """Return ``cls`` with ``values`` set; text is converted to the type of the default.

    Raises:
        UsageError: an unknown name (the nearest are offered), or a value out of its range.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    chosen: dict[str, Any] = {}
    for name, text in values.items():
        if name not in fields:
            raise UsageError(f"unknown option {name!r}", hint=nearest(name, sorted(fields)))
        meta = fields[name].metadata
        value = _convert(name, text, fields[name].default)
        if meta["choices"] and value not in meta["choices"]:
            raise UsageError(f"option {name}: {value!r} is not one of {', '.join(meta['choices'])}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"option {name} must be a finite number, got {value}")
        if meta["path"] and value:
            value = str(Path(value).absolute())
        low, high = meta["low"], meta["high"]
        if (low is not None and value < low) or (high is not None and value > high):
            raise UsageError(f"option {name} must be {_bounds(low, high)}, got {value}")
        chosen[name] = value
    return cls(**chosen)
