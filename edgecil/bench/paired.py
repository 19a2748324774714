"""Differences of methods, paired over the seeds that they share, with 95 % intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from edgecil.bench.results import Result, summaries
from edgecil.errors import DataError, UsageError
from edgecil.spelling import nearest

# Student's t at 0.975 for 1 to 10 degrees of freedom; beyond, the last one: a little wide.
_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Interval:
    """A mean and half of its 95 % interval of Student's t; infinite for a single value."""

    mean: float
    margin: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Return the interval of at least one value."""
        count = len(values)
        if count == 1:
            return cls(values[0], math.inf)
        quantile = _T975[min(count - 1, len(_T975)) - 1]
        return cls(statistics.fmean(values), quantile * statistics.stdev(values) / count**0.5)


@dataclass(frozen=True)
class Difference:
    """By how much the accuracies in [0, 1] of a row are above those of another."""

    name: str
    seeds: int
    """Number of seeds that both have."""
    final: Interval
    average: Interval


def differences(results: Sequence[Result], against: str) -> list[Difference]:
    """Return the differences to the row ``against`` of all rows that share seeds with it.

    Raises:
        UsageError: there is no such row.
        DataError: no row has a seed in common with it.
    """
    rows = {row.name: {run["seed"]: run for run in row.runs} for row in summaries(results)}
    if against not in rows:
        raise UsageError(f"no result is called {against!r}", hint=nearest(against, tuple(rows)))
    other = rows.pop(against)
    found = []
    for name, own in rows.items():
        seeds = own.keys() & other.keys()
        if seeds:
            final, average = (
                Interval.of([own[seed][measure] - other[seed][measure] for seed in seeds])
                for measure in ("final", "average")
            )
            found.append(Difference(name, len(seeds), final, average))
    if not found:
        raise DataError(f"no other method has a seed in common with {against}")
    return found
