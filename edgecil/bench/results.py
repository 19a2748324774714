"""Results on disk, and the table that they make."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgecil import metrics
from edgecil.bench.protocol import Published
from edgecil.bench.runner import Variant
from edgecil.errors import DataError
from edgecil.learning.request import default_codec
from edgecil.memory.fields import IMAGES
from edgecil.methods import joint
from edgecil.options import make_options
from edgecil.registry import with_preset
from edgecil.units import format_bytes

ORACLE = "joint"
"""The method whose runs are the offline accuracies of Omega."""
EXTRAS = {"forgetting_of_base": "F", "top5": "top-5"}
"""Measures that have a column, with this title, where a paper prints them."""

Result = dict[str, Any]
Spread = Literal["sample", "population"]


def to_text(result: Result) -> str:
    """Return a result as JSON text with one line per entry, so that a difference can be read."""
    lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in result.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read(path: Path) -> Result:
    """Return the result in a JSON file.

    Raises:
        DataError: the file is not a result.
    """
    try:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
        return result | {"variant": str(Variant(result["method"], result["options"]))}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a result of edgecil bench: {error}") from None


def load(folder: Path) -> list[Result]:
    """Return the results in the JSON files of a folder, each with Omega and images per second.

    Both are None where they cannot be known: without the oracle's run of the same seed, and in
    files that count no processor time.

    Raises:
        DataError: a file is not a result.
    """
    found = [read(path) for path in sorted(folder.glob("*.json"))]
    _name(found)
    best = oracle(found)
    offline = {r["seed"]: r["accuracy"] for r in found if r["name"] == best}
    for result in found:
        known = offline.get(result["seed"])
        result["omega"] = metrics.omega(result["accuracy"], known) if known else None
        result["images_per_second"] = metrics.images_per_second(result)
    return found


def oracle(results: Sequence[Result]) -> str | None:
    """Return the name of the row that Omega is relative to; None where there is none.

    Of several rows of joint training it is one from scratch, as in ABD, then the plainest. One
    row for all seeds: those that it lacks have no Omega.
    """

    def rank(result: Result) -> tuple[bool, int, str]:
        said = len(result["options"]) + len(result["settings"])
        return not _from_scratch(result), said, result["name"]

    rows = [r for r in results if r["method"] == ORACLE]
    return str(min(rows, key=rank)["name"]) if rows else None


def _from_scratch(result: Result) -> bool:
    """Return whether joint training began each increment anew, by an option or by its preset."""
    options = dict(result["options"])
    preset = joint.PRESETS.get(options.pop("preset", result.get("preset")))
    return bool(make_options(joint.Options, with_preset(preset, options)).scratch)


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


def codec(result: Result) -> str | None:
    """Return what the images that a run kept are stored as; None where none are stored.

    Joint training keeps references to files, whatever codec is asked for.
    """
    kept = any(field["name"] == IMAGES for field in result["kept_fields"])
    if not kept or result["method"] == ORACLE:
        return None
    settings = result["settings"]
    return str(settings.get("codec") or default_codec(settings.get("memory_budget")))


def _name(results: Sequence[Result]) -> None:
    """Name every result by its method and by the settings that are not those of all.

    Where one states a codec, the default of the others is stated, too.
    """
    stated = any("codec" in r["settings"] for r in results)
    settings = [r["settings"] | ({"codec": codec(r)} if stated else {}) for r in results]
    for result, mine in zip(results, settings, strict=True):
        own = [
            _said(key, value)
            for key, value in sorted(mine.items())
            if value is not None and any(theirs.get(key) != value for theirs in settings)
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
        """Images trained per second; None where a result does not count them."""
        return self.mean("images_per_second")

    def mean(self, measure: str) -> float | None:
        """Return the mean of a measure over the seeds; None where a run does not have it.

        Of a measure of every increment the last one counts.
        """
        values = self._values(measure)
        return statistics.fmean(values) if values else None

    def deviation(self, measure: str, spread: Spread = "sample") -> float | None:
        """Return the standard deviation of a measure over the seeds; None for a single one."""
        values = self._values(measure)
        if len(values) < 2:
            return None
        return statistics.stdev(values) if spread == "sample" else statistics.pstdev(values)

    def _values(self, measure: str) -> list[float]:
        values = [r[measure] for r in self.runs]
        last = [v[-1] if isinstance(v, list) else v for v in values]
        return [] if None in last else last


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


def markdown(
    results: Sequence[Result],
    published: Mapping[str, Published] | None = None,
    spread: Spread = "sample",
) -> str:
    """Return the table of the results as Markdown: accuracies in %, mean (± deviation) of seeds.

    Under a method that a paper has results of, these follow in a row of their own; what any of
    ``published`` prints of :data:`EXTRAS` has a column.

    Raises:
        DataError: a published row has more or fewer accuracies than there are increments.
    """
    papers = published or {}
    classes = results[0]["classes"] if results else []
    extras = [m for m in EXTRAS if any(getattr(p, m) is not None for p in papers.values())]
    head = [
        "method", *(f"{n}" for n in classes), "average", "forgetting",
        *(EXTRAS[m] for m in extras), "kept", "Ω", "images/s", "seeds",
    ]  # fmt: skip
    rows = []
    for summary in summaries(results):
        rows.append(_cells(summary, extras, spread))
        if summary.name in papers:
            rows.append(_printed(papers[summary.name], len(classes), extras))
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))


def legend(results: Sequence[Result], spread: Spread = "sample") -> str:
    """Return what the reader of the table must know of this one; empty where there is nothing."""
    lines = []
    if any(row.seeds > 1 for row in summaries(results)):
        lines.append(f"± is the {spread} standard deviation over the seeds.")
    if (name := oracle(results)) is not None:
        lines.append(f"Ω is relative to `{name}`.")
    return "".join(f"{line}\n" for line in lines)


def _cells(row: Summary, extras: Sequence[str], spread: Spread) -> list[str]:
    return [
        f"`{row.name}`",
        *(f"{100 * v:.1f}" for v in row.accuracy),
        *(_percent(row, measure, spread) for measure in ("average", "forgetting", *extras)),
        f"{row.kept_bytes / 1e6:.2f} MB" if row.kept_bytes else "0",
        _number(row.mean("omega"), ".3f"),
        _number(row.images_per_second, ".0f"),
        str(row.seeds),
    ]


def _printed(paper: Published, increments: int, extras: Sequence[str]) -> list[str]:
    """Return the row of what a paper prints; it has no bytes and no speed of ours.

    Omega is printed in %; Chaudhry's forgetting, the column that stays empty, not at all.
    """
    accuracy = paper.accuracy or [None] * (increments - 1) + [paper.final]
    if len(accuracy) != increments:
        raise DataError(
            f"published, {paper.table}: {len(accuracy)} accuracies for {increments} increments"
        )
    values = [*accuracy, paper.average, None, *(getattr(paper, m) for m in extras)]
    omega = None if paper.omega is None else paper.omega / 100
    cells = [_number(v, ".1f") for v in values]
    return [f"published: {paper.table}", *cells, "", _number(omega, ".3f"), "", ""]


def _number(value: float | None, form: str) -> str:
    return "—" if value is None else format(value, form)


def _percent(row: Summary, measure: str, spread: Spread) -> str:
    mean, deviation = row.mean(measure), row.deviation(measure, spread)
    if mean is None:
        return "—"
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")
