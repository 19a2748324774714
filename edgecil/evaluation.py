"""Accuracy of a model on images whose classes are known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgecil import metrics
from edgecil.data.images import ImageSet
from edgecil.data.loader import evaluation_batches
from edgecil.engine.compute import Compute
from edgecil.memory.process import peak_memory
from edgecil.model import Model
from edgecil.settings import Preprocess
from edgecil_runtime.evaluation import percentiles

BATCH = 256


@dataclass(frozen=True)
class Evaluation:
    """Counts and rates of one pass; accuracies in [0, 1]."""

    labels: tuple[str, ...]
    groups: tuple[int, ...]
    """Number of classes that each increment added."""
    counts: NDArray[np.int64]
    """Confusion matrix ``(C, C)``: rows true, columns predicted, in order of introduction."""
    top5: float
    milliseconds: tuple[float, ...]
    """Time per image of every batch."""
    task_aware: float = float("nan")
    """Accuracy when the increment of an image is known."""
    task_aware_released: float = float("nan")
    """The same without each increment's last class, as in ABD's code."""

    @property
    def top1(self) -> float:
        """Share of right predictions."""
        return metrics.accuracy(self.counts)

    @property
    def n(self) -> int:
        """Number of images."""
        return int(self.counts.sum())

    def span(self, start: int, stop: int) -> float:
        """Return the accuracy on the classes ``start`` to ``stop - 1``; NaN without images."""
        return metrics.accuracy(self.counts, slice(start, stop))

    @property
    def old(self) -> float:
        """Accuracy on the classes before the last increment."""
        return self.span(0, len(self.labels) - self.groups[-1])

    @property
    def new(self) -> float:
        """Accuracy on the classes of the last increment."""
        return self.span(len(self.labels) - self.groups[-1], len(self.labels))

    def by_increment(self) -> list[float]:
        """Return the accuracy on the classes of every increment, in order."""
        stops = np.cumsum(self.groups)
        return [self.span(int(b - g), int(b)) for g, b in zip(self.groups, stops, strict=True)]

    @property
    def latency_ms(self) -> dict[str, float | None]:
        """Median over batches of the time per image; no time of a single image is measured.

        So p95 and p99 are None: the slowest images are not told from the others of their batch.
        """
        return {"p50": percentiles(self.milliseconds)["p50"], "p95": None, "p99": None}

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``evaluate --json``; None where there are no images."""
        per_class = dict(zip(self.labels, metrics.per_class(self.counts).tolist(), strict=True))
        peak = peak_memory()
        return {
            "top1": _known(self.top1),
            "top5": _known(self.top5),
            "task_aware": _known(self.task_aware),
            "task_aware_released": _known(self.task_aware_released),
            "n": self.n,
            "old": _known(self.old),
            "new": _known(self.new),
            "by_increment": [_known(v) for v in self.by_increment()],
            "per_class": {name: _known(v) for name, v in per_class.items()},
            "confusion": self.counts.tolist(),
            "labels": list(self.labels),
            "latency_ms": self.latency_ms,
            "peak_rss_bytes": peak["peak_rss_bytes"],
            "anon_bytes": peak["anon_bytes"],
        }


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


@torch.no_grad()
def scores(
    model: Model, images: ImageSet, preprocess: Preprocess, compute: Compute
) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    """Return the scores ``(N, C)`` of all images and the milliseconds per image of each batch."""
    device = compute.torch_device
    net, rule = model.net.to(device).eval(), model.rule.to(device).eval()
    parts, times = [], []
    for batch in evaluation_batches(images, preprocess, BATCH, device):
        start = time.perf_counter()
        with compute.autocast():
            outputs = net(batch)
        part = rule(outputs.features.float(), outputs.logits.float()).cpu()
        times.append(1e3 * (time.perf_counter() - start) / len(batch))
        parts.append(part.numpy())
    if not parts:
        return np.zeros((0, model.net.classes), np.float32), ()
    return np.concatenate(parts), tuple(times)


def evaluate_images(
    model: Model,
    images: ImageSet,
    preprocess: Preprocess,
    compute: Compute,
    labels: Sequence[str],
    groups: Sequence[int],
) -> Evaluation:
    """Return the evaluation of a model on decoded images."""
    values, times = scores(model, images, preprocess, compute)
    truth = images.labels.cpu().numpy()
    predicted = values.argmax(axis=1)
    counts = metrics.confusion(truth, predicted, len(labels))
    stops = np.cumsum(groups)
    spans = [slice(int(b - g), int(b)) for g, b in zip(groups, stops, strict=True)]
    return Evaluation(
        tuple(labels), tuple(groups), counts, metrics.top_k(values, truth), times,
        metrics.task_aware(values, truth, spans),
        metrics.task_aware(values, truth, spans, released=True),
    )  # fmt: skip
