"""What methods really kept, for a published table: from results of ``bench`` or a workspace."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgecil.bench import results as bench
from edgecil.bench.results import Result
from edgecil.bench.runner import Variant
from edgecil.errors import DataError
from edgecil.memory.report import Comparison, MethodMemory
from edgecil.reporting.cases import Case
from edgecil.reporting.protocol import Dataset, MemoryProtocol
from edgecil.workspace import Workspace


@dataclass
class Measured:
    """Measured rows by data set and case, and why results were left out."""

    rows: dict[tuple[str, Case], MethodMemory] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_results(folder: Path) -> list[Result]:
    """Return the results of ``bench`` in a folder.

    Raises:
        DataError: there is none, or a file is not a result.
    """
    found = bench.load(folder)
    if not found:
        raise DataError(f"{folder}: no results there", hint="make some: edgecil bench tens")
    return found


def result_of(workspace: Workspace) -> Result:
    """Return what a workspace measured, as in a result of ``bench``.

    Raises:
        WorkspaceError: there is no workspace.
    """
    lineage = workspace.increments(workspace.manifest().version)[::-1]
    last = lineage[-1]
    return {
        "name": f"workspace {workspace.root}",
        "method": last.method,
        "options": last.options,
        "settings": {"codec": last.kept["codec"]},
        "classes": [len(m.names) for m in lineage],
        "net": last.net,
        "kept_bytes": [m.kept["bytes"] for m in lineage],
        "kept_fields": last.kept["fields"],
        "exemplars_per_class": last.kept["exemplars_per_class"],
        "training_bytes": max(sum(m.training["memory_bytes"].values()) for m in lineage),
    }


def measured(found: Sequence[Result], wanted: MemoryProtocol) -> Measured:
    """Return the rows of the results that meet the protocol's conditions.

    Of several seeds the one that kept most counts.
    """
    made = Measured()
    for result in found:
        dataset = next((d for d in wanted.datasets if _belongs(result, wanted, d)), None)
        if dataset is None:
            made.notes.append(
                f"{result['name']} is left out: {len(result['classes'])} increments to "
                f"{result['classes'][-1]} classes with {result['net']['arch']} are not in the table"
            )
            continue
        reason = _differs(result, wanted)
        if reason is not None:
            made.notes.append(f"{result['name']} is left out: {reason}")
            continue
        case, row = _row(result, dataset)
        before = made.rows.get((dataset.name, case))
        if before is None or row.kept_bytes > before.kept_bytes:
            made.rows[dataset.name, case] = row
    return made


def _belongs(result: Result, wanted: MemoryProtocol, dataset: Dataset) -> bool:
    classes = list(itertools.accumulate(wanted.increments))
    return bool(result["classes"] == classes and result["net"]["arch"] == dataset.arch)


def _differs(result: Result, wanted: MemoryProtocol) -> str | None:
    """Return what keeps a result of the right increments from being comparable."""
    number, share = result["exemplars_per_class"], wanted.exemplars_total // sum(wanted.increments)
    if number is None or number == share:
        return None
    if bench.codec(result):
        return f"it keeps {number} exemplars per class, the table has {share}"
    return None


def _row(result: Result, dataset: Dataset) -> tuple[Case, MethodMemory]:
    method = str(Variant(result["method"], result["options"]))
    fields = tuple((f["name"], f["bytes"]) for f in result["kept_fields"])
    codec = bench.codec(result)
    compared = Comparison(
        dataset.name, dataset.published.get(method), codec, tuple(result["kept_bytes"])
    )
    row = MethodMemory(
        method, result["kept_bytes"][-1], fields, result["training_bytes"], "measured",
        compared=compared,
    )  # fmt: skip
    return Case(method, codec), row
