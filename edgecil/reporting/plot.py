"""Accuracy against kept bytes, the idea of M2KD's Fig. 9, as a figure that reads in print."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecil.bench.results import ORACLE, Result, Summary, summaries
from edgecil.errors import DataError, UsageError
from edgecil.figures import FORMATS, save
from edgecil.reporting.labels import SIZE, label
from edgecil.reporting.measured import read_results
from edgecil.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

# Told apart by shape and by filled or open, so that a grey copy says as much.
MARKERS = tuple(
    itertools.product(("o", "s", "^", "D", "v", "P", "X", "p", "h", "*"), (True, False))
)
INK = "#1f4e79"
WIDE = 1.7
"""Width of the panel of methods that keep something, over that of the others."""


@dataclass(frozen=True)
class Point:
    """One method of the figure; accuracies in [0, 1]."""

    method: str
    kept_bytes: int
    average: float
    deviation: float | None
    """Sample standard deviation over the seeds; None for one seed."""
    seeds: int
    bound: bool
    """True for joint training, which needs all old files: a line, whatever bytes it notes down."""


@dataclass(frozen=True)
class MemoryPlot:
    """A figure that was written, and what is in it."""

    path: Path
    protocol: str
    classes: int
    points: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the figure's contents as one JSON object."""
        points = [vars(point) for point in self.points]
        return {**vars(self), "path": str(self.path), "points": points}


def _point(row: Summary) -> Point:
    average = row.mean("average")
    assert average is not None
    return Point(
        row.label, row.kept_bytes, average, row.deviation("average"), row.seeds,
        row.runs[0]["method"] == ORACLE,
    )  # fmt: skip


def plot_memory(results: Path, target: Path) -> MemoryPlot:
    """Return the figure of a folder of ``bench`` results, written to ``target``.

    Raises:
        UsageError: ``target`` is neither a PNG nor an SVG file.
        DataError: there are no results, or they are of several protocols.
    """
    return draw_memory(read_results(results), target)


def draw_memory(found: Sequence[Result], target: Path) -> MemoryPlot:
    """Return the figure of ``found``, written to ``target``.

    Each method's average accuracy over the increments stands over the bytes that it keeps after
    the last one; on a logarithmic axis, beside which zero has a place of its own.

    Raises:
        UsageError: ``target`` is neither a PNG nor an SVG file.
        DataError: the results are of several protocols.
    """
    if target.suffix.lower() not in FORMATS:
        raise UsageError(f"{target}: the figure is a .png or an .svg file")
    protocols = {(r["protocol"], tuple(r["classes"])) for r in found}
    if len(protocols) > 1:
        named = ", ".join(sorted({name for name, _ in protocols}))
        raise DataError(f"results of different protocols ({named}) share no axis")
    ((protocol, classes),) = protocols
    figure = MemoryPlot(target, protocol, classes[-1], tuple(map(_point, summaries(found))))
    _draw(figure)
    return figure


def _draw(plot: MemoryPlot) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    drawn = [point for point in plot.points if not point.bound]
    shapes = dict(zip((p.method for p in drawn), itertools.cycle(MARKERS), strict=False))
    panels = [[p for p in drawn if not p.kept_bytes], [p for p in drawn if p.kept_bytes]]
    panels = [panel for panel in panels if panel] or [[]]
    widths = [WIDE if panel and panel[0].kept_bytes else 1.0 for panel in panels]
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(6.6, 4.0), dpi=200, layout="constrained")
        row = figure.subplots(1, len(panels), sharey=True, width_ratios=widths, squeeze=False)[0]
        names = []
        for axes, panel in zip(row, panels, strict=True):
            _frame(axes, [point.kept_bytes for point in panel], first=axes is row[0])
            for point in panel:
                _mark(axes, point, shapes[point.method])
                names.append((axes, point.kept_bytes, 100 * point.average, point.method))
        levels = [_level(row, point) for point in plot.points if point.bound]
        row[0].set_ylabel(f"average accuracy up to {plot.classes} classes, %")
        figure.supxlabel("kept between increments, beside the classifier", fontsize=9)
        figure.draw_without_rendering()
        label(names, [text.get_window_extent() for text in levels])
        save(figure, plot.path)


def _frame(axes: Axes, kept: Sequence[int], *, first: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.grid(axis="y", alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if not first:
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    axes.margins(y=0.12)
    if not any(kept):
        axes.set_xlim(-0.12, 1)
        axes.set_xticks([0], ["nothing"])
        return
    axes.set_xscale("log")
    axes.set_xlim(min(kept) / 2, max(kept) * 5)  # room for names on the right
    near = max(kept) < 30 * min(kept)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if near else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: format_bytes(size)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _mark(axes: Axes, point: Point, shape: tuple[str, bool]) -> None:
    marker, filled = shape
    deviation = None if point.deviation is None else 100 * point.deviation
    drawn = axes.errorbar(
        point.kept_bytes, 100 * point.average, deviation, fmt=marker, color=INK, markersize=6,
        markerfacecolor=INK if filled else "white", elinewidth=0.8, capsize=2,
    )  # fmt: skip
    drawn.lines[0].set_gid(f"point {point.method}")


def _level(row: Sequence[Axes], point: Point) -> Text:
    """Draw a method that needs all old files as a line across the figure."""
    for axes in row:
        axes.axhline(100 * point.average, color="0.4", linestyle="--", linewidth=1)
    return row[-1].annotate(
        f"{point.method}: needs all old files", (1, 100 * point.average), (0, 3),
        xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
        fontsize=SIZE, color="0.3",
    )  # fmt: skip
