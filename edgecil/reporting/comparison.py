"""A published memory table with our bytes beside the printed ones: planned, and measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgecil.memory.report import MethodMemory, to_csv, to_json
from edgecil.nets.build import shapes
from edgecil.nets.net import NetSpec
from edgecil.reporting.cases import Case, cases, planned, planned_training
from edgecil.reporting.measured import measured, read_results, result_of
from edgecil.reporting.protocol import Dataset, MemoryProtocol, protocol
from edgecil.workspace import Workspace


@dataclass(frozen=True)
class Column:
    """One data set of a published table."""

    dataset: Dataset
    rows: tuple[MethodMemory, ...]
    """Planned rows: the baseline, then fewest bytes first; each is followed by its measured one."""
    training: Mapping[str, Mapping[str, int] | None]
    """Planned training memory by method and kind; None where it has no plan."""
    network_bytes: int
    """Bytes of the parameters, which every method has."""


@dataclass(frozen=True)
class PublishedTable:
    """A published memory table with our figures."""

    protocol: MemoryProtocol
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()
    """Results that are left out, and why."""

    @property
    def rows(self) -> tuple[MethodMemory, ...]:
        """The rows of all data sets."""
        return tuple(row for column in self.columns for row in column.rows)

    def to_json(self) -> dict[str, Any]:
        """Return the table as one JSON object."""
        training = [
            {"dataset": column.dataset.name, "method": name, "bytes": held and dict(held)}
            for column in self.columns
            for name, held in column.training.items()
        ]
        return {
            **to_json(self.rows),
            "training": training,
            "protocol": self.protocol.name,
            "source": self.protocol.source,
            "notes": list(self.notes),
        }

    def to_csv(self) -> str:
        """Return the rows as CSV text, one line per field and one total per method."""
        return to_csv(self.rows)


def compare(
    name: str, *, results: Path | None = None, workspace: Workspace | None = None
) -> PublishedTable:
    """Return the published table ``name`` with our figures, planned from declarations alone.

    ``results`` is a folder of ``bench`` results and ``workspace`` one of the same increments:
    what they measured stands beside the plans.

    Raises:
        UsageError: there is no such table.
        DataError: the folder holds no results.
    """
    wanted = protocol(name)
    found = read_results(results) if results is not None else []
    found += [result_of(workspace)] if workspace is not None else []
    seen = measured(found, wanted)
    columns = []
    for dataset in wanted.datasets:
        mine = {case: row for (of, case), row in seen.rows.items() if of == dataset.name}
        columns.append(_column(wanted, dataset, mine))
    return PublishedTable(wanted, tuple(columns), tuple(seen.notes))


def _column(wanted: MemoryProtocol, dataset: Dataset, seen: Mapping[Case, MethodMemory]) -> Column:
    every = list(dict.fromkeys([*cases(wanted, dataset), *seen]))
    plans = {case: planned(case, wanted, dataset) for case in every}
    one_each = {case.method: case for case in every}
    training = {m: planned_training(case, wanted, dataset) for m, case in one_each.items()}
    # The rows of one method stay together, in the order of its codecs.
    first = {case.method: plans[case].kept_bytes for case in reversed(every)}
    every.sort(key=lambda c: (c.method != wanted.baseline, first[c.method], c.method))
    rows = []
    for case in every:
        held = training[case.method]
        total = None if held is None else sum(held.values())
        rows.append(replace(plans[case], training_bytes=total))
        rows += [seen[case]] if case in seen else []
    tree = shapes(NetSpec(dataset.arch), sum(wanted.increments))["parameters"]
    network = 4 * sum(math.prod(shape) for shape in tree.values())
    order = dict.fromkeys(row.method for row in rows)
    return Column(dataset, tuple(rows), {m: training[m] for m in order}, network)
