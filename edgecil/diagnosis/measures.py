"""What a diagnosis measures, as values and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecil import metrics
from edgecil.diagnosis.distance import mean_image_distance, squared_mmd

OLD, NEW, SYNTHETIC = "real old", "real new", "synthetic old"


@dataclass(frozen=True)
class Distance:
    """How far the features of a sample are from those of the reference, real old images."""

    sample: str
    images: int
    mid: float
    mmd_squared: float


@dataclass(frozen=True)
class Drift:
    """How far an earlier version is from the diagnosed one, on test images of its classes."""

    version: int
    classes: int
    images: int
    mid: float
    """Between its features, the reference, and the present ones."""
    cosine: float
    """Mean cosine between both features of an image."""
    attention: float
    """Mean distance between both attention maps (LwM eq. (4)); NaN where there is no such pair."""
    attention_images: int
    """Images that have both maps: none where logits are not used."""


@dataclass(frozen=True)
class Diagnosis:
    """What was measured of a version, and the files that show it."""

    version: int
    method: str
    labels: tuple[str, ...]
    old: int
    """The first so many classes are old, the others new."""
    confusion: NDArray[np.int64]
    """Counts ``(C, C)`` on the test images: rows true, columns predicted."""
    distances: tuple[Distance, ...]
    bandwidth: float
    """Of the RBF kernel of MMD: the median distance within the reference."""
    drift: tuple[Drift, ...]
    files: tuple[Path, ...]
    shown: Mapping[str, int] | None = None
    """How many synthetic images are taken for each old class, where there are such images."""

    @property
    def top1(self) -> float:
        """Accuracy on all test images, in [0, 1]."""
        return metrics.accuracy(self.confusion)

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``diagnose.json``; None where nothing could be measured."""
        return {
            "version": self.version,
            "method": self.method,
            "labels": list(self.labels),
            "old_classes": self.old,
            "top1": _known(self.top1),
            "confusion": self.confusion.tolist(),
            "reference": OLD,
            "distances": [_plain(row) for row in self.distances],
            "kernel": {"name": "rbf", "bandwidth": _known(self.bandwidth)},
            "drift": [_plain(row) for row in self.drift],
            "synthetic": None if self.shown is None else dict(self.shown),
            "files": [path.name for path in self.files],
        }


def distances(samples: Mapping[str, NDArray[Any]], sigma: float) -> tuple[Distance, ...]:
    """Return MID and MMD squared of every sample of features from the one called ``OLD``."""
    reference = samples[OLD]
    return tuple(
        Distance(
            name, len(rows), mean_image_distance(reference, rows),
            squared_mmd(reference, rows, sigma),
        )
        for name, rows in samples.items()
        if name != OLD
    )  # fmt: skip


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _plain(row: Distance | Drift) -> dict[str, Any]:
    return {k: _known(v) if isinstance(v, float) else v for k, v in vars(row).items()}
