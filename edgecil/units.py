"""Sizes in bytes and durations in seconds, as people write them."""

from __future__ import annotations

import re

from edgecil.errors import UsageError

_FACTORS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_bytes(text: str) -> int:
    """Return the bytes that ``"2MB"``, ``"1.5MiB"``, ``"600kB"`` or ``"0"`` stand for.

    MB is 10^6 bytes, as in the papers; MiB is 2^20.

    Raises:
        UsageError: the text is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _FACTORS:
        raise UsageError(f"{text!r} is not a size", hint="write it like 600kB, 2MB or 1.5MiB")
    return round(float(match[1]) * _FACTORS[match[2].lower()])


def count(number: int, noun: str) -> str:
    """Return ``1 image``, ``2,000 images``, ``1 class``, ``3 classes``."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural}"


def format_bytes(count: float) -> str:
    """Return ``count`` bytes with a unit of powers of ten, such as ``"1.85 MB"``."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(count) >= factor:
            digits = f"{count / factor:.3g}" if count < 999.5 * factor else f"{count / factor:.0f}"
            return f"{digits} {unit}"
    return f"{count:.0f} B"


def parse_seconds(text: str) -> float:
    """Return the seconds that ``"90"``, ``"90s"``, ``"45min"`` or ``"2h"`` stand for.

    Raises:
        UsageError: the text is not a duration.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _SECONDS:
        raise UsageError(f"{text!r} is not a duration", hint="write it like 90s, 45min or 2h")
    return float(match[1]) * _SECONDS[match[2]]


def format_seconds(seconds: float) -> str:
    """Return a duration such as ``"42 s"``, ``"3 min 20 s"`` or ``"2 h 05 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
