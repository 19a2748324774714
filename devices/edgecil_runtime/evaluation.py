"""Accuracy, latency and memory of a classifier over a folder, one image at a time."""

from __future__ import annotations

import os
import unicodedata
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Set, Tuple, Union

import numpy as np

from edgecil_runtime import memory
from edgecil_runtime.errors import ImageError, InputError
from edgecil_runtime.evaluation_log import EvaluationLog, Outcome
from edgecil_runtime.hashing import sha256
from edgecil_runtime.images import PathLike, list_images
from edgecil_runtime.manifest import Manifest, manifest_digest

if TYPE_CHECKING:
    from typing import Protocol, Sequence

    from numpy.typing import NDArray

    class Scorer(Protocol):
        """What can be evaluated: a classifier."""

        manifest: Manifest
        labels: Tuple[str, ...]

        def file_scores(self, path: PathLike) -> Tuple[NDArray[np.float32], float]:
            """Return the scores ``(C,)`` of an image file, and the seconds without reading it."""

        def usage(self) -> Optional[memory.Usage]:
            """Return the memory of the process that computes."""


TOP = 5
# How many measurements each takes: from 20 on one of them lies above p95, from 100 on above p99.
_PERCENTILES = {50: 1, 95: 20, 99: 100}


def percentiles(
    times: Union[Sequence[float], NDArray[np.float32]],
) -> Dict[str, Optional[float]]:
    """Return ``{"p50", "p95", "p99"}`` of some times; None where there are too few to tell."""
    return {
        f"p{share}": float(np.percentile(times, share)) if len(times) >= least else None
        for share, least in _PERCENTILES.items()
    }


@dataclass(frozen=True)
class Evaluation:
    """Counts over a folder. ``confusion`` is int64 ``(C, C)``: rows true, columns predicted.

    ``milliseconds`` holds the time of every prediction without reading the file, ``usage`` the
    memory of the process at the end, ``skipped`` the images that could not be read.
    """

    labels: Tuple[str, ...]
    increments: Tuple[int, ...]
    confusion: NDArray[np.int64]
    top5_hits: int
    milliseconds: NDArray[np.float32]
    usage: Optional[memory.Usage]
    skipped: int

    @property
    def n(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of right predictions, in [0, 1]."""
        return int(self.confusion.trace()) / self.n

    @property
    def top5(self) -> float:
        """Share of images whose class is among the five best scores, in [0, 1]."""
        return self.top5_hits / self.n

    @property
    def latency_ms(self) -> Dict[str, Optional[float]]:
        """Percentiles of the time of one prediction, in milliseconds; see :func:`percentiles`."""
        return percentiles(self.milliseconds)

    @property
    def per_class(self) -> Dict[str, Optional[float]]:
        """Accuracy of every class, in [0, 1]; None where there was no image of it."""
        return {name: self._accuracy([row]) for row, name in enumerate(self.labels)}

    @property
    def by_increment(self) -> List[Optional[float]]:
        """Accuracy on the classes of every increment, in order."""
        return [self.over({increment}) for increment in sorted(set(self.increments))]

    def over(self, increments: Set[int]) -> Optional[float]:
        """Return the accuracy on the classes of some increments; None without images."""
        return self._accuracy([row for row, i in enumerate(self.increments) if i in increments])

    def _accuracy(self, rows: List[int]) -> Optional[float]:
        total = int(self.confusion[rows].sum())
        hits = int(self.confusion[rows, rows].sum())
        return hits / total if total else None

    def to_json(self) -> Dict[str, Any]:
        """Return the JSON object of ``evaluate --json``; accuracies are in [0, 1]."""
        last = {max(self.increments)}
        now = self.usage
        return {
            "top1": self.top1,
            "top5": self.top5,
            "n": self.n,
            "skipped": self.skipped,
            "old": self.over(set(self.increments) - last),
            "new": self.over(last),
            "by_increment": self.by_increment,
            "per_class": self.per_class,
            "confusion": self.confusion.tolist(),
            "labels": list(self.labels),
            "latency_ms": self.latency_ms,
            "peak_rss_bytes": now.peak if now else None,
            "anon_bytes": now.anonymous if now else None,
            "file_bytes": now.file_backed if now else None,
            "major_faults": now.major_faults if now else None,
        }


def evaluate_folder(
    classifier: Scorer,
    folder: PathLike,
    on_progress: Optional[Callable[[int, int], None]],
    ignore_unknown: bool,
    skip_bad: bool,
    resume_file: Optional[PathLike] = None,
) -> Evaluation:
    """Return the evaluation of ``classifier`` on class folders; see ``Classifier.evaluate``."""
    files = _matched(folder, classifier.labels, ignore_unknown)
    confusion = np.zeros((len(classifier.labels),) * 2, np.int64)
    milliseconds = array("f")
    top5_hits = skipped = 0
    outcomes = _outcomes(classifier, files, skip_bad, resume_file)
    for done, outcome in enumerate(outcomes, 1):
        if outcome.predicted is None:
            skipped += 1
        else:
            milliseconds.append(outcome.milliseconds)
            confusion[outcome.true, outcome.predicted] += 1
            top5_hits += outcome.in_top5
        if on_progress is not None:
            on_progress(done, len(files))
    if not milliseconds:
        raise InputError(f"{os.fspath(folder)}: none of its {skipped} images can be read")
    return Evaluation(
        classifier.labels,
        tuple(label.increment for label in classifier.manifest.labels),
        confusion,
        top5_hits,
        np.frombuffer(milliseconds, np.float32),
        classifier.usage(),
        skipped,
    )


def _outcomes(
    classifier: Scorer,
    files: List[Tuple[Path, int]],
    skip_bad: bool,
    resume_file: Optional[PathLike],
) -> Iterator[Outcome]:
    if resume_file is None:
        yield from (_outcome(classifier, path, true, skip_bad) for path, true in files)
        return
    identity = {
        "model": manifest_digest(classifier.manifest.to_json()),
        "images": sha256("\n".join(f"{true} {path}" for path, true in files).encode()).hexdigest(),
    }
    with EvaluationLog(resume_file, identity, len(classifier.labels)) as log:
        known = 0
        for outcome in log.earlier():
            known += 1
            yield outcome
        for path, true in files[known:]:
            outcome = _outcome(classifier, path, true, skip_bad)
            log.add(outcome)
            yield outcome


def _outcome(classifier: Scorer, path: Path, true: int, skip_bad: bool) -> Outcome:
    try:
        scores, seconds = classifier.file_scores(path)
    except ImageError as error:
        if skip_bad:
            return Outcome(true, None, False, 0.0)
        named = error.message if str(path) in error.message else f"{path}: {error.message}"
        raise ImageError(named, hint=error.hint) from None
    return Outcome(true, int(scores.argmax()), _rank(scores, true) < TOP, 1e3 * seconds)


def _rank(scores: NDArray[np.float32], true: int) -> int:
    # Number of classes before ``true``; of equal scores the lower index comes first, as argmax.
    return int((scores > scores[true]).sum() + (scores[:true] == scores[true]).sum())


def _matched(
    folder: PathLike, labels: Tuple[str, ...], ignore_unknown: bool
) -> List[Tuple[Path, int]]:
    listing = list_images(folder)
    rows = {_normal(label): row for row, label in enumerate(labels)}
    unknown = [name for name in listing.classes if _normal(name) not in rows]
    if unknown and not ignore_unknown:
        shown = ", ".join(unknown[:8]) + (f" and {len(unknown) - 8} more" if unknown[8:] else "")
        raise InputError(
            f"{os.fspath(folder)}: {len(unknown)} folders are not classes of the model: {shown}",
            hint="rename or remove them, or pass over them with --ignore-unknown",
        )
    found = [rows.get(_normal(name)) for name in listing.classes]
    files = [(path, row) for path, index in listing.files if (row := found[index]) is not None]
    if not files:
        raise InputError(f"{os.fspath(folder)}: holds no image of a class of the model")
    return files


def _normal(name: str) -> str:
    # Some file systems store accents decomposed.
    return unicodedata.normalize("NFC", name)
