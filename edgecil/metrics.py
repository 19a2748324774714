"""Measures of class-incremental learning, as functions of counts.

Accuracies are in [0, 1]. The confusion matrix has true classes in rows and predictions in
columns, both in order of introduction, so any sizes of increments work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def confusion(labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: int) -> Counts:
    """Return the int64 count matrix ``(C, C)``: rows true, columns predicted."""
    flat = np.bincount(labels * classes + predictions, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def accuracy(counts: Counts, rows: slice = slice(None)) -> float:
    """Return the share of right predictions among the images of the classes in ``rows``.

    Weighted by images, not by tasks. NaN when there are no images.
    """
    total = int(counts[rows].sum())
    hits = int(np.diagonal(counts)[rows].sum())
    return hits / total if total else float("nan")


def per_class(counts: Counts) -> Floats:
    """Return the accuracy of every class ``(C,)``; NaN for classes without images."""
    totals = counts.sum(axis=1).astype(float)
    unknown = np.full(len(totals), np.nan)
    rates: Floats = np.divide(np.diagonal(counts), totals, out=unknown, where=totals > 0)
    return rates


def task_mean(by_increment: Sequence[float]) -> float:
    """Return the mean of the accuracies on the classes of each increment.

    ABD averages so; where increments are uneven it is not the accuracy over images. NaN, that of
    an increment without images, is left out.
    """
    return float(np.nanmean(by_increment))


def average(accuracies: Sequence[float]) -> float:
    """Return the average incremental accuracy, the base increment included (iCaRL, LUCIR)."""
    return float(np.mean(accuracies))


def forgetting_of_base(first: float, last: float) -> float:
    """Return Mnemonics' F: base-class accuracy after the base increment minus after the last.

    Both over the logits of all classes seen at that time; positive means forgetting.
    """
    return first - last


def forgetting(matrix: Floats) -> float:
    """Return the mean over tasks of (best past accuracy - last accuracy), Chaudhry et al.

    ``matrix[t, j]`` is the accuracy on task j after increment t (NaN for j > t). The last task
    cannot be forgotten yet and is left out; 0 for a single increment.
    """
    last = len(matrix) - 1
    if last < 1:
        return 0.0
    drops = [np.nanmax(matrix[j:last, j]) - matrix[last, j] for j in range(last)]
    return float(np.mean(drops))


def omega(accuracies: Sequence[float], offline: Sequence[float]) -> float:
    """Return ABD's Omega, the mean of A_i / A_offline,i (eq. (17) in its plain form).

    ``offline[i]`` is the accuracy of a network trained from scratch on increments 0..i. Read
    literally, the printed double sum does not give the paper's table; the plain mean does.
    """
    if len(accuracies) != len(offline):
        raise ValueError(f"{len(accuracies)} accuracies, {len(offline)} offline accuracies")
    return float(np.mean(np.asarray(accuracies) / np.asarray(offline)))


def top_k(scores: NDArray[np.float32], labels: NDArray[np.int64], k: int = 5) -> float:
    """Return the share of images whose class is among the ``k`` best scores.

    With fewer than ``k`` classes every image counts as a hit. NaN without images.
    """
    if not len(labels):
        return float("nan")
    k = min(k, scores.shape[1])
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return float((best == labels[:, None]).any(axis=1).mean())


def task_aware(
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    spans: Sequence[slice],
    *,
    released: bool = False,
) -> float:
    """Return the accuracy when the task is known: arg-max inside the label's own span.

    ABD eq. (16), with the last class of each task included; with ``released`` without the images
    of that class, which ABD's code leaves out. NaN without images.
    """
    hits = images = 0
    for span in spans:
        rows = (labels >= span.start) & (labels < span.stop - released)
        if not rows.any():  # the argmax over no classes, of an increment that added none, fails
            continue
        hits += int((scores[rows, span].argmax(axis=1) + span.start == labels[rows]).sum())
        images += int(rows.sum())
    return hits / images if images else float("nan")


def images_per_second(result: Mapping[str, Any]) -> float | None:
    """Return the images trained per second: on a CPU, of the time that one core spent on them.

    Runs that share cores wait for each other; what a core spends on an image stays the same.
    ``result`` has ``images``, ``seconds`` and ``cpu_seconds`` of every increment and, in
    ``training``, the ``device``. None where processor time was not counted.
    """
    if "cpu_seconds" not in result:
        return None
    clock = "cpu_seconds" if result["training"]["device"] == "cpu" else "seconds"
    return float(sum(result["images"]) / sum(result[clock]))
