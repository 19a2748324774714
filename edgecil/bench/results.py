"""Results on disk, and the table that they make."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecil import metrics
from edgecil.bench.protocol import Published
from edgecil.bench.runner import Variant
from edgecil.errors import DataError
from edgecil.units import format_bytes

# Student's t at 0.975 for 1, 2, ... degrees of freedom.
_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
ORACLE = "joint"
"""The method whose runs are the offline accuracies of Omega."""

Result = dict[str, Any]


def to_text(result: Result) -> str:
    """Return a result as JSON text with one line per entry, so that a difference can be read."""
    lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in result.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def load(folder: Path) -> list[Result]:
    """Return the results in the JSON files of a folder, with Omega where the oracle is there.

    Raises:
        DataError: a file is not a result.
    """
    found: list[Result] = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            found.append(result | {"variant": str(Variant(result["method"], result["options"]))})
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a result of edgecil bench: {error}") from None
    _name(found)
    oracles = {r["seed"]: r["accuracy"] for r in found if r["name"] == ORACLE}
    for result in found:
        if result["seed"] in oracles:
            result["omega"] = metrics.omega(result["accuracy"], oracles[result["seed"]])
    return found


def _said(key: str, value: Any) -> str:
    """Return a setting in a word or two, for the name of a row."""
    match key:
        case "memory_budget":
            return format_bytes(value)
        case "exemplars_per_class":
            return f"{value} per class"
        case "exemplars_total":
            return f"{value} in all"
        case "codec":
            return str(value)
    return f"{key.replace('_', ' ')} {value}"


def _name(results: Sequence[Result]) -> None:
    """Name every result by its method and by the settings that are not those of all."""
    for result in results:
        own = [
            _said(key, value)
            for key, value in sorted(result["settings"].items())
            if any(r["settings"].get(key) != value for r in results)
        ]
        result["name"] = ", ".join([result["variant"], *own])


@dataclass(frozen=True)
class Summary:
    """The runs of one method over its seeds; accuracies in [0, 1]."""

    name: str
    runs: tuple[Result, ...]
    label: str
    """For figures: as much of the name as tells it from the others, the method at least."""

    @property
    def seeds(self) -> int:
        """Number of runs."""
        return len(self.runs)

    @property
    def accuracy(self) -> list[float]:
        """Mean accuracy after each increment."""
        return [statistics.fmean(v) for v in zip(*(r["accuracy"] for r in self.runs), strict=True)]

    @property
    def kept_bytes(self) -> int:
        """Most bytes kept after the last increment."""
        return int(max(r["kept_bytes"][-1] for r in self.runs))

    @property
    def images_per_second(self) -> float | None:
        """Images trained per second: on a CPU, of the time that one core spent on them.

        Runs that share cores wait for each other; what a core spends on an image stays the same.
        None where a result does not count them.
        """
        if not all("cpu_seconds" in r for r in self.runs):
            return None
        clocks = (
            "cpu_seconds" if r["training"]["device"] == "cpu" else "seconds" for r in self.runs
        )
        spent = sum(sum(r[clock]) for r, clock in zip(self.runs, clocks, strict=True))
        return float(sum(sum(r["images"]) for r in self.runs) / spent)

    def mean(self, measure: str) -> float | None:
        """Return the mean of a measure over the seeds; None where a run does not have it."""
        values = [r[measure] for r in self.runs]
        flat = [statistics.fmean(v) if isinstance(v, list) else v for v in values]
        return None if None in flat else statistics.fmean(flat)

    def deviation(self, measure: str) -> float | None:
        """Return the sample standard deviation of a measure; None for a single seed."""
        values = [r[measure] for r in self.runs]
        return statistics.stdev(values) if len(values) > 1 and None not in values else None


def summaries(results: Sequence[Result]) -> list[Summary]:
    """Return one summary per method and options, best average accuracy first."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result["name"], []).append(result)
    firsts = [runs[0] for runs in groups.values()]
    made = [Summary(n, tuple(runs), _label(runs[0], firsts)) for n, runs in groups.items()]
    return sorted(made, key=lambda s: -(s.mean("average") or 0))


def _label(result: Result, others: Sequence[Result]) -> str:
    for form in ("method", "variant"):
        if sum(other[form] == result[form] for other in others) == 1:
            return str(result[form])
    return str(result["name"])


def paired(
    results: Sequence[Result], first: str, second: str, measure: str = "final"
) -> tuple[float, float]:
    """Return the mean difference of two methods over the seeds that both have, and its margin.

    The margin is half of the 95 % interval of Student's t; infinite for a single seed.

    Raises:
        DataError: they have no seed in common.
    """
    of = {(r["name"], r["seed"]): r[measure] for r in results}
    seeds = sorted(seed for name, seed in of if name == first and (second, seed) in of)
    if not seeds:
        raise DataError(f"{first} and {second} have no seed in common")
    differences = [of[first, seed] - of[second, seed] for seed in seeds]
    count = len(seeds)
    if count == 1:
        return differences[0], math.inf
    quantile = _T975[min(count - 1, len(_T975)) - 1]
    return statistics.fmean(differences), quantile * statistics.stdev(differences) / count**0.5


def markdown(results: Sequence[Result], published: Mapping[str, Published] | None = None) -> str:
    """Return the table of the results as Markdown: accuracies in %, mean (± deviation) of seeds.

    Under a method that a paper has results of, these follow in a row of their own.
    """
    classes = results[0]["classes"] if results else []
    head = [
        "method", *(f"{n}" for n in classes), "average", "forgetting", "kept", "Ω", "images/s",
        "seeds",
    ]  # fmt: skip
    rows = []
    for summary in summaries(results):
        rows.append(_cells(summary))
        if published and summary.name in published:
            rows.append(_printed(published[summary.name], len(classes)))
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))


def _cells(row: Summary) -> list[str]:
    return [
        f"`{row.name}`",
        *(f"{100 * v:.1f}" for v in row.accuracy),
        _percent(row, "average"),
        _percent(row, "forgetting"),
        f"{row.kept_bytes / 1e6:.2f} MB" if row.kept_bytes else "0",
        _number(row.mean("omega"), ".3f"),
        _number(row.images_per_second, ".0f"),
        str(row.seeds),
    ]


def _printed(paper: Published, increments: int) -> list[str]:
    """Return the row of what a paper prints; it has no bytes and no speed of ours."""
    final = [None] * (increments - 1) + [paper.final]
    values = [*(paper.accuracy or final), paper.average, paper.forgetting_of_base]
    cells = ["—" if v is None else f"{v:.1f}" for v in values]
    return [f"published: {paper.table}", *cells, "", "", "", ""]


def _number(value: float | None, form: str) -> str:
    return "—" if value is None else format(value, form)


def _percent(row: Summary, measure: str) -> str:
    mean, deviation = row.mean(measure), row.deviation(measure)
    if mean is None:
        return "—"
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")
