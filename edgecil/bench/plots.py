"""Figures of results, readable in print: told apart by marker and line as well as by colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from edgecil.figures import save

MARKERS = ("o", "s", "v", "D", "^", "P", "X", "<", ">", "*")
LINES = ("-", "--", ":", "-.")
HIGHEST = 102
"""Percent at the upper end of the axis, with room for a marker."""
NAME = 0.15
"""Inches from one name to the next."""

Curve = tuple[Sequence[int], Sequence[float]]
"""Classes seen and accuracy on all of them, in [0, 1], after each increment."""


def learning_curves(curves: Mapping[str, Curve], target: Path, *, what: str = "classes") -> Path:
    """Write accuracy against the number of ``what`` seen so far, and return the file's path.

    The format is that of the path's suffix.
    """
    from matplotlib.figure import Figure

    height = max(3.6, 2 * NAME * len(curves))  # inches: names stay near the ends of their lines
    figure = Figure(figsize=(5.6, height))
    axes = figure.subplots()
    ends = []
    for (name, (classes, values)), marker, line in zip(
        curves.items(), cycle(MARKERS), cycle(LINES), strict=False
    ):
        percent = [100 * v for v in values]
        (drawn,) = axes.plot(classes, percent, line, marker=marker, markersize=4, linewidth=1.2)
        ends.append((percent[-1], name, drawn.get_color(), classes[-1]))
    axes.set(xlabel=f"{what} learned", ylabel="accuracy on all of them, %")
    axes.set_ylim(0, HIGHEST)
    axes.set_xticks(sorted({n for classes, _ in curves.values() for n in classes}))
    _tidy(axes)
    # Names stand at the ends of their lines, pushed apart where the lines meet.
    gap = NAME / axes.get_window_extent().height * figure.dpi * HIGHEST
    heights = _apart([end[0] for end in ends], gap, least=gap / 2)
    for y, (_, name, colour, x) in zip(heights, ends, strict=True):
        axes.annotate(
            name, (x, y), (6, 0), textcoords="offset points", va="center", fontsize=8,
            color=colour, annotation_clip=False,
        )  # fmt: skip
    return save(figure, target, bbox_inches="tight", dpi=200)


def _apart(heights: Sequence[float], gap: float, least: float = -math.inf) -> list[float]:
    """Return the heights moved as little as is needed to be ``gap`` apart and above ``least``."""

    def centre(block: list[int]) -> float:
        mean = sum(heights[i] for i in block) / len(block)
        return max(mean, least + gap * (len(block) - 1) / 2)

    blocks: list[list[int]] = []
    for index in sorted(range(len(heights)), key=heights.__getitem__):
        blocks.append([index])
        while len(blocks) > 1:
            low, high = blocks[-2], blocks[-1]
            if centre(high) - centre(low) >= gap * (len(low) + len(high)) / 2:
                break
            blocks[-2:] = [low + high]
    placed = [0.0] * len(heights)
    for block in blocks:
        for rank, index in enumerate(block):
            placed[index] = centre(block) + gap * (rank - (len(block) - 1) / 2)
    return placed


def _tidy(axes: Any) -> None:
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
