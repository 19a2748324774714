"""The table and the plots of a folder of results, from its JSON files alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgecil.bench import plots, results
from edgecil.bench.protocol import protocols
from edgecil.bench.results import Result
from edgecil.errors import DataError
from edgecil.reporting.plot import draw_memory

TABLE = "table.md"


@dataclass(frozen=True)
class Report:
    """The results of a folder, and the files made from them."""

    results: list[Result]
    files: tuple[Path, ...]


def write(folder: Path) -> Report:
    """Return what is in ``folder`` after writing its table and plots beside the results.

    Raises:
        DataError: there is no result in it, or results of protocols that differ.
    """
    found = results.load(folder)
    if not found:
        raise DataError(f"{folder}: no result there", hint="run some: --data DIR --methods lwm")
    if len({(r["protocol"], tuple(r["classes"])) for r in found}) > 1:
        raise DataError(f"{folder}: results of different protocols cannot share a table")
    table = folder / TABLE
    known = protocols().get(found[0]["protocol"])
    text = results.markdown(found, known.published if known else None)
    table.write_text(text, encoding="utf-8")
    rows = results.summaries(found)
    curves = {row.label: (row.runs[0]["classes"], row.accuracy) for row in rows}
    drawn = []
    for suffix in plots.FORMATS:
        drawn.append(plots.learning_curves(curves, folder / f"accuracy{suffix}"))
        drawn.append(draw_memory(found, folder / f"memory{suffix}").path)
    return Report(found, (table, *drawn))
