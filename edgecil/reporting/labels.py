"""Names beside the points of a figure, where nothing else stands."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

SIZE = 8
AWAY, ASIDE, STEP, MARKER = 7.0, 18.0, 2.0, 4.5
"""From a point to its name, and to one that moved up or down; between places that are tried;
half a marker; in points."""


def label(
    names: Sequence[tuple[Axes, float, float, str]], occupied: Sequence[Bbox] = ()
) -> list[Bbox]:
    """Write every ``(axes, x, y, name)`` near its point and return where they stand, in pixels.

    A name goes to the nearest free place to the right or left of its point; one that had to
    move up or down is tied to the point by a thin line. ``occupied`` is where other text stands.
    The figure must have been laid out.
    """
    scale = names[0][0].figure.dpi / 72 if names else 1.0
    centres = [tuple(axes.transData.transform((x, y)).tolist()) for axes, x, y, _ in names]
    markers = [_box(x, y, MARKER * scale, MARKER * scale) for x, y in centres]
    taken = [*occupied, *markers]
    placed = []
    # From the top down, and a name that must move goes down: names keep the order of the points.
    for number in sorted(range(len(names)), key=lambda n: (-centres[n][1], centres[n][0])):
        axes, x, y, name = names[number]
        width, height = _extent(axes, name)
        side, step, box = _free(centres[number], width, height, scale, axes, taken)
        offset = (side * (ASIDE if step else AWAY), step)
        line = {"arrowstyle": "-", "linewidth": 0.5, "color": "0.4", "shrinkA": 1, "shrinkB": 3}
        axes.annotate(
            name, (x, y), offset, textcoords="offset points", fontsize=SIZE,
            ha="left" if side > 0 else "right", va="center", annotation_clip=False,
            arrowprops={**line, "relpos": ((1 - side) / 2, 0.5)} if step else None,
        ).set_in_layout(False)  # fmt: skip
        taken.append(box)
        placed.append(box)
    return placed


def _box(x: float, y: float, half_width: float, half_height: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(x - half_width, y - half_height, x + half_width, y + half_height)


def _extent(axes: Axes, name: str) -> tuple[float, float]:
    trial = axes.figure.text(0, 0, name, fontsize=SIZE)
    extent = trial.get_window_extent()
    trial.remove()
    return extent.width, extent.height


def _free(
    centre: tuple[float, float],
    width: float,
    height: float,
    scale: float,
    axes: Axes,
    taken: Sequence[Bbox],
) -> tuple[int, float, Bbox]:
    """Return side, points up or down, and box of the nearest free place, or else of the last."""
    most = int(axes.bbox.height / scale / STEP)
    steps = [*range(0, -most - 1, -1), *range(1, most + 1)]
    left, low, right, high = axes.bbox.x0, axes.bbox.y0, axes.figure.bbox.x1, axes.bbox.y1
    for step, side in itertools.product(steps, (1, -1)):
        x = centre[0] + side * ((ASIDE if step else AWAY) * scale + width / 2)
        box = _box(x, centre[1] + step * STEP * scale, width / 2, height / 2)
        inside = left <= box.x0 and box.x1 <= right and low <= box.y0 and box.y1 <= high
        if inside and not any(box.overlaps(other) for other in taken):
            break
    return side, step * STEP, box
