"""Names that a mistyped one may have been meant for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

NEAR, NEAR_SHORT, SHORT, BEST = 0.5, 0.6, 6, 0.15
"""How alike names must be, those of up to ``SHORT`` letters more; and how far behind the best."""


def near(name: str, known: Sequence[str]) -> list[str]:
    """Return up to three known names that ``name`` may be a slip of, nearest first."""
    typed = name.lstrip("-").lower()
    alike = {
        other: difflib.SequenceMatcher(None, other.lstrip("-").lower(), typed).ratio()
        for other in known
    }
    least = NEAR_SHORT if len(typed) <= SHORT else NEAR
    least = max(least, max(alike.values(), default=0.0) - BEST)
    found = sorted((other for other in alike if alike[other] >= least), key=lambda o: -alike[o])
    return found[:3]


OFFERED = 30
"""Names that a hint lists at most."""


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a hint that offers the known names nearest to ``name``."""
    if not known:
        return "there are none"
    close = near(name, known)
    if close:
        return "did you mean " + ", ".join(close) + "?"
    more = f" and {len(known) - OFFERED} more" if len(known) > OFFERED else ""
    return "there are " + ", ".join(known[:OFFERED]) + more
