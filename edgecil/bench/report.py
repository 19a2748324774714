"""The table and the plots of a folder of results, from its JSON files alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgecil.bench import plots, results
from edgecil.bench.protocol import Protocol
from edgecil.bench.results import Result, Spread
from edgecil.errors import DataError
from edgecil.figures import FORMATS
from edgecil.reporting.plot import draw_memory

TABLE = "table.md"


@dataclass(frozen=True)
class Report:
    """The results of a folder, and the files made from them."""

    results: list[Result]
    files: tuple[Path, ...]


def write(folder: Path, protocol: Protocol, *, spread: Spread = "sample") -> Report:
    """Return what is in ``folder`` after writing its table and plots beside the results.

    What ``protocol`` has published stands in the table; ``spread`` is that of its deviations.

    Raises:
        DataError: there is no result in it, or results of another protocol.
    """
    found = results.load(folder)
    if not found:
        raise DataError(f"{folder}: no result there", hint="run some: --data DIR --methods lwm")
    if len({(r["protocol"], tuple(r["classes"])) for r in found}) > 1:
        raise DataError(f"{folder}: results of different protocols cannot share a table")
    if (name := found[0]["protocol"]) != protocol.name:
        raise DataError(f"{folder}: its results are of {name}, not of {protocol.name}")
    table = folder / TABLE
    text = results.markdown(found, protocol.published, spread)
    below = results.legend(found, spread)
    table.write_text(f"{text}\n{below}" if below else text, encoding="utf-8")
    rows = results.summaries(found)
    curves = {row.label: (row.runs[0]["classes"], row.accuracy) for row in rows}
    drawn = []
    for suffix in FORMATS:
        drawn.append(plots.learning_curves(curves, folder / f"accuracy{suffix}"))
        drawn.append(draw_memory(found, folder / f"memory{suffix}").path)
    return Report(found, (table, *drawn))
