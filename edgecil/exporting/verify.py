"""The gates of an export: a graph that does not behave like the model is not written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edgecil.errors import VerificationError
from edgecil.exporting.graph import Core
from edgecil.exporting.sessions import Pixels, Scores
from edgecil.settings import Preprocess

Basis = Literal["real", "synthetic", "noise"]
PARITY = 1e-3
"""Largest difference of float32 scores, relative to the largest score."""


@dataclass(frozen=True)
class Comparison:
    """How far two sets of scores for the same images agree.

    ``agreement`` in [0, 1] is the share of equal predictions; ``basis`` says whether the
    images were real, made from the model, or noise.
    """

    images: int
    basis: Basis
    agreement: float
    max_abs_diff: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Accuracy:
    """Accuracies in [0, 1] of the float32 and the shipped graph on one group of images."""

    images: int
    fp32: float
    shipped: float

    @property
    def drop(self) -> float:
        """Percentage points lost; negative when the shipped graph is better."""
        return 100 * (self.fp32 - self.shipped)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        return {**asdict(self), "drop_points": self.drop}


def centre(pixels: Pixels, size: int) -> Pixels:
    """Return the centre ``(N, size, size, 3)`` of stored images ``(N, R, R, 3)``."""
    inset = (pixels.shape[1] - size) // 2
    return pixels[:, inset : inset + size, inset : inset + size]


@torch.no_grad()
def torch_scores(core: Core, preprocess: Preprocess, pixels: Pixels) -> Scores:
    """Return what torch computes for stored images ``(N, R, R, 3)``: scores ``(N, C)``."""
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    rows = []
    for image in centre(pixels, preprocess.size):
        levels = torch.from_numpy(np.ascontiguousarray(image)).float()
        rows.append(core(((levels / 255 - mean) / std).permute(2, 0, 1)[None]))
    scores: Scores = torch.cat(rows).numpy()
    return scores


def compare(reference: Scores, scores: Scores, basis: Basis) -> Comparison:
    """Return how far two sets of scores ``(N, C)`` agree."""
    same = reference.argmax(axis=1) == scores.argmax(axis=1)
    largest = float(np.abs(reference - scores).max())
    return Comparison(len(reference), basis, float(same.mean()), largest)


def check_labels(labels: int, scores: Scores) -> None:
    """Do nothing when there is one label per score.

    Raises:
        VerificationError: the numbers differ.
    """
    if scores.shape[1] != labels:
        raise VerificationError(
            f"the graph gives {scores.shape[1]} scores, but there are {labels} labels"
        )


def check_parity(reference: Scores, scores: Scores, basis: Basis) -> Comparison:
    """Return how the float32 graph compares with torch.

    Raises:
        VerificationError: a score is not finite, or differs by more than rounding explains.
    """
    _check_finite(reference, "model")
    _check_finite(scores, "float32 graph")
    result = compare(reference, scores, basis)
    allowed = PARITY * max(1.0, float(np.abs(reference).max()))
    if not result.max_abs_diff <= allowed:
        raise VerificationError(
            f"the float32 graph differs from the model: expected scores within {allowed:.2g}, "
            f"got a difference of {result.max_abs_diff:.3g} on {result.images} images",
            hint="this is a defect of the export; please report it with 'edgecil --version'",
        )
    return result


def check_agreement(
    reference: Scores, scores: Scores, basis: Basis, min_agreement: float
) -> Comparison:
    """Return how the int8 graph compares with the float32 one.

    Noise says little about predictions on images: there only scores that are not finite, or
    the same for all images, are refused.

    Raises:
        VerificationError: on images, less than ``min_agreement`` in [0, 1].
    """
    _check_finite(scores, "int8 graph")
    result = compare(reference, scores, basis)
    if len(scores) > 1 and np.ptp(scores, axis=0).max() == 0 < np.ptp(reference, axis=0).max():
        raise VerificationError(
            "the int8 graph gives the same scores for every image",
            hint="calibrate with images of this kind: --calibrate DIR",
        )
    if basis != "noise" and result.agreement < min_agreement:
        raise VerificationError(
            f"int8 predicts the same class as float32 on {result.agreement:.1%} of "
            f"{result.images} {basis} images, expected at least {min_agreement:.1%}",
            hint="calibrate with more images (--calibrate DIR) or export with --precision fp32",
        )
    return result


def check_accuracy(
    reference: Scores,
    scores: Scores,
    labels: NDArray[np.int64],
    first_new: int,
    max_drop: float,
) -> dict[str, Accuracy]:
    """Return the accuracies on ``old``, ``new`` (labels from ``first_new`` on) and ``all`` images.

    Groups without images are left out. One image may always be lost: in a small group it is
    more than ``max_drop`` percentage points.

    Raises:
        VerificationError: a group lost more than ``max_drop`` points.
    """
    right = reference.argmax(axis=1) == labels, scores.argmax(axis=1) == labels
    groups = {"old": labels < first_new, "new": labels >= first_new, "all": labels >= 0}
    result = {}
    for name, members in groups.items():
        count = int(members.sum())
        if not count:
            continue
        before, after = (int(r[members].sum()) for r in right)
        result[name] = Accuracy(count, before / count, after / count)
        if before - after > max(1.0, max_drop / 100 * count):
            raise VerificationError(
                f"int8 loses {result[name].drop:.2f} points on {name} classes "
                f"({before / count:.1%} to {after / count:.1%} of {count} images), "
                f"allowed {max_drop:g}",
                hint="calibrate with more images (--calibrate DIR), "
                "allow it with --max-drop, or export with --precision fp32",
            )
    return result


def _check_finite(scores: Scores, what: str) -> None:
    if not np.isfinite(scores).all():
        raise VerificationError(f"the {what} gives scores that are not finite")
