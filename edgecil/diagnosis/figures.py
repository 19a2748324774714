"""Figures of a diagnosis, made for print: shape and lightness tell what colour tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecil.diagnosis.distance import Floats, Plane
from edgecil.diagnosis.look import AttentionGrid
from edgecil.diagnosis.measures import NEW, OLD, SYNTHETIC
from edgecil.figures import FORMATS, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES: Mapping[str, dict[str, Any]] = {
    OLD: {"marker": "o", "facecolors": "#1f4e79", "edgecolors": "none", "s": 9, "alpha": 0.75},
    NEW: {"marker": "^", "facecolors": "none", "edgecolors": "#c1670b", "s": 14, "linewidths": 0.7},
    SYNTHETIC: {"marker": "x", "color": "0.25", "s": 12, "linewidths": 0.7},
}
NAMED = 30
"""Classes that have room for their names at the sides of a confusion matrix."""
COUNTED = 12
"""Classes up to which its cells have room for numbers."""
_CELL = 1.05


def _write(
    draw: Callable[[Figure], None], size: tuple[float, float], folder: Path, name: str
) -> list[Path]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure(figsize=size, dpi=200, layout="constrained")
        draw(figure)
        return [save(figure, folder / f"{name}{suffix}") for suffix in FORMATS]


def confusion(
    counts: NDArray[np.int64], names: Sequence[str], groups: Sequence[int], folder: Path
) -> list[Path]:
    """Write ``confusion``: the share of each class's images (rows) by predicted class.

    Lines part the increments. Classes without test images are hatched.
    """
    totals = counts.sum(axis=1, keepdims=True)
    rates = np.divide(100 * counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    side = min(7.0, max(3.2, 0.17 * len(names) + 1.6))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_facecolor("0.97")
        shades = axes.imshow(rates, cmap="Greys", vmin=0, vmax=100, interpolation="nearest")
        figure.colorbar(shades, ax=axes, label="% of the class's images", shrink=0.8)
        bounds = np.cumsum(groups)[:-1] - 0.5
        for bound in bounds:
            axes.axhline(bound, color="#c1670b", linewidth=0.9)
            axes.axvline(bound, color="#c1670b", linewidth=0.9)
        for row in np.flatnonzero(totals[:, 0] == 0):
            axes.axhspan(
                row - 0.5, row + 0.5, fill=False, hatch="////", edgecolor="0.7", linewidth=0
            )
        axes.set(xlabel="predicted", ylabel="true")
        _name_classes(axes, names, groups)
        if len(names) <= COUNTED:
            _numbers(axes, rates)

    return _write(draw, (side + 0.9, side), folder, "confusion")


def _name_classes(axes: Axes, names: Sequence[str], groups: Sequence[int]) -> None:
    if len(names) <= NAMED:
        places = np.arange(len(names))
        axes.set_xticks(places, names, rotation=90, fontsize=7)
        axes.set_yticks(places, names, fontsize=7)
        return
    stops = np.cumsum(groups)
    middles = stops - np.array(groups) / 2 - 0.5
    words = [str(number) for number in range(1, len(groups) + 1)]
    axes.set_xticks(middles, words)
    axes.set_yticks(middles, words)
    axes.set(xlabel="predicted class, by increment", ylabel="true class, by increment")


def _numbers(axes: Axes, rates: Floats) -> None:
    for row, column in np.argwhere(rates >= 0.5):
        value = rates[row, column]
        axes.text(
            column, row, f"{value:.0f}", ha="center", va="center", fontsize=6,
            color="white" if value > 55 else "black",
        )  # fmt: skip


def plane(
    points: Mapping[str, Floats], whole: Plane, folder: Path, name: str, axis: str
) -> list[Path]:
    """Write a scatter plot of samples ``(N, 2)``; ``axis`` names its axes, numbered 1 and 2."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for sample, rows in points.items():
            axes.scatter(rows[:, 0], rows[:, 1], label=sample, **STYLES[sample])
        words = [f"{axis} {number}" for number in (1, 2)]
        if whole.shares:
            words = [
                f"{word} ({100 * share:.0f} % of the variance)"
                for word, share in zip(words, whole.shares, strict=True)
            ]
        axes.set(xlabel=words[0], ylabel=words[1])
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper left", ncols=len(points), frameon=False, markerscale=1.5)

    return _write(draw, (4.4, 3.9), folder, name)


def attention(grid: AttentionGrid, folder: Path) -> list[Path]:
    """Write ``attention``: images in rows, the maps of versions in columns (LwM Fig. 4).

    Each map is scaled to its own maximum; below it stands its distance to the first one.
    """
    rows, columns = grid.distances.shape

    def draw(figure: Figure) -> None:
        axes = figure.subplots(rows, columns + 1, squeeze=False)
        shades: Any = None
        for row in range(rows):
            axes[row, 0].imshow(grid.images[row])
            axes[row, 0].set_ylabel(grid.names[row], fontsize=7)
            for column in range(columns):
                shades = _heat(axes[row, column + 1], grid.images[row], grid.maps[row, column])
                found = grid.distances[row, column]
                text = "no map" if np.isnan(found) else f"{found:.2f}" if column else "distance:"
                axes[row, column + 1].set_xlabel(text, fontsize=6, labelpad=1)
        for place in axes.flat:
            place.set_xticks([])
            place.set_yticks([])
            place.spines[:].set_visible(False)
        axes[0, 0].set_title("image", fontsize=7)
        for column, number in enumerate(grid.versions, start=1):
            axes[0, column].set_title(f"version {number}", fontsize=7)
        bar = figure.colorbar(shades, ax=axes, shrink=0.5, aspect=18, ticks=[0, 1])
        bar.ax.set_yticklabels(["none", "most"], fontsize=6)
        bar.set_label("attention", fontsize=7, labelpad=-8)

    size = (_CELL * (columns + 1) + 0.7, _CELL * 1.14 * rows + 0.25)
    return _write(draw, size, folder, "attention")


def _heat(axes: Axes, image: NDArray[np.uint8], attended: NDArray[np.float32]) -> Any:
    """Draw a grey image and, over it, a map whose lightness rises with the attention."""
    edge = image.shape[0]
    extent = (-0.5, edge - 0.5, edge - 0.5, -0.5)
    # Darkened, so that what is bright in a grey print is attention.
    axes.imshow(image.astype(float).mean(axis=2), cmap="gray", vmin=0, vmax=380)
    largest = float(attended.max())
    scaled = attended / largest if largest > 0 else attended
    return axes.imshow(
        scaled, cmap="inferno", vmin=0, vmax=1, alpha=0.62, interpolation="bicubic", extent=extent
    )


def sheet(rows: Mapping[str, NDArray[np.uint8]], folder: Path) -> list[Path]:
    """Write ``sheet``: images ``(n, S, S, 3)`` of each class in a row of its own."""
    most = max(len(images) for images in rows.values())

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(rows), most, squeeze=False)
        for line, (name, images) in zip(axes, rows.items(), strict=True):
            for place in line:
                place.set_xticks([])
                place.set_yticks([])
                place.spines[:].set_visible(False)
            for place, image in zip(line, images, strict=False):
                place.imshow(image)
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)

    return _write(draw, (0.55 * most + 1.0, 0.55 * len(rows) + 0.1), folder, "sheet")
