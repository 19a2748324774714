"""How figures become files: the same in every command that draws."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")


def save(figure: Figure, path: Path, **how: Any) -> Path:
    """Write a figure in the format of the path's suffix, and return the path.

    Equal figures make equal files. Text stays text in SVG: it can be searched, and is small.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgecil"}):
        figure.savefig(
            path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None, **how
        )
    return path
