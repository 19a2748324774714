"""Random splits, always the same, for data sets without one of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgecil.bench.layouts.listing import Listing

SEED = 1993


def split(images: Mapping[str, Sequence[Path]], test: float) -> Listing:
    """Return a listing in which the share ``test`` of every class is for testing, at least one.

    The split depends on the names of the files alone, class by class.
    """
    parts: tuple[dict[str, list[Path]], dict[str, list[Path]]] = ({}, {})
    for name, paths in images.items():
        ordered = sorted(paths)
        drawn = np.random.RandomState(SEED).permutation(len(ordered))
        held = set(drawn[: max(1, round(test * len(ordered)))].tolist())
        for row, path in enumerate(ordered):
            parts[row in held].setdefault(name, []).append(path)
    return Listing(tuple(images), *parts)


def resplit(listing: Listing, test: float) -> Listing:
    """Return a listing with all its images split anew."""
    return split({n: [*listing.train[n], *listing.test[n]] for n in listing.classes}, test)
