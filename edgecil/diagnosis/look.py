"""What versions make of images: features, scores and attention, and how these change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edgecil.data.images import ImageSet
from edgecil.data.loader import labelled_batches
from edgecil.diagnosis.distance import mean_image_distance
from edgecil.diagnosis.measures import Drift
from edgecil.engine.compute import Compute
from edgecil.losses.attention import attention, attention_distance
from edgecil.model import Model
from edgecil.settings import Preprocess
from edgecil.versions import load_version
from edgecil.workspace import VersionManifest, Workspace

BATCH = 256
ROWS = 4
"""Test images whose attention is shown, of as many classes."""
COLUMNS = 6
"""Versions whose attention is shown."""


class Look(NamedTuple):
    """What a version makes of images, on the CPU in float32, a row per image.

    ``features`` ``(N, D)``, ``scores`` ``(N, C)`` by its rule, and ``maps`` ``(N, h, w)``: the
    attention for each image's true class (LwM eqs. (2)-(3)).
    """

    features: Tensor
    scores: Tensor
    maps: Tensor


def look(model: Model, images: ImageSet, preprocess: Preprocess, compute: Compute) -> Look:
    """Return what ``model`` makes of at least one image of classes that it knows."""
    device = compute.torch_device
    net, rule = model.net.to(device).eval(), model.rule.to(device).eval()
    parts = []
    with torch.no_grad():
        for batch, labels in labelled_batches(images, preprocess, BATCH, device):
            outputs = net(batch)
            height, width = outputs.map.shape[2:]
            maps = attention(net, outputs, labels, trains=False).view(-1, height, width)
            features = outputs.features.float()
            scores = rule(features, outputs.logits.float())
            parts.append((features.cpu(), scores.cpu(), maps.detach().cpu()))
    return Look(*(torch.cat(column) for column in zip(*parts, strict=True)))


@dataclass(frozen=True)
class AttentionGrid:
    """Attention maps of a few images (rows) by the versions of a lineage (columns).

    ``images`` is uint8 ``(R, S, S, 3)``, ``maps`` ``(R, V, h, w)``, ``distances`` ``(R, V)``:
    LwM's eq. (4) between each map and that of the first version, NaN where one is empty.
    """

    names: tuple[str, ...]
    """Classes of the images."""
    versions: tuple[int, ...]
    images: NDArray[np.uint8]
    maps: NDArray[np.float32]
    distances: NDArray[np.float32]


def evenly(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the numbers below ``count``, evenly, both ends among them."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most)).round()})


def _shown_rows(labels: Tensor, classes: int) -> Tensor:
    """Return the first image of a few of the first ``classes`` classes."""
    present = torch.unique(labels[labels < classes])
    chosen = present[evenly(len(present), ROWS)]
    return torch.stack([(labels == label).nonzero()[0, 0] for label in chosen])


def _attention(before: Tensor, now: Tensor) -> tuple[int, float]:
    """Return how many pairs of maps ``(N, h, w)`` can be compared, and their mean distance.

    A map that is zero everywhere has no direction: where no evidence for a class is seen, nothing
    was kept, which a distance of 0 would say.
    """
    both = (before.flatten(1).amax(dim=1) > 0) & (now.flatten(1).amax(dim=1) > 0)
    if not bool(both.any()):
        return 0, float("nan")
    distance = attention_distance(before[both].flatten(1), now[both].flatten(1))
    return int(both.sum()), float(distance)


def _drift(manifest: VersionManifest, before: Look, now: Look, *, used: bool) -> Drift:
    pairs, distance = _attention(before.maps, now.maps) if used else (0, float("nan"))
    return Drift(
        manifest.version, len(manifest.classes), len(before.features),
        mean_image_distance(before.features.numpy(), now.features.numpy()),
        float(F.cosine_similarity(before.features, now.features).mean()), distance, pairs,
    )  # fmt: skip


def _line(place: Workspace, version: int) -> list[int]:
    """Return the versions up to ``version`` that have weights, oldest first, one per increment."""
    found: dict[int, int] = {}
    for number in place.lineage(version):
        if number == version or place.complete(number):
            # A renamed class makes a version with the same weights.
            found.setdefault(place.manifest(number).increment, number)
    return list(found.values())[::-1]


def lineage(
    place: Workspace, manifest: VersionManifest, tests: ImageSet, now: Look, compute: Compute
) -> tuple[tuple[Drift, ...], AttentionGrid | None]:
    """Return how far each earlier increment is from ``manifest``'s, and what they look at.

    ``now`` is what the latter makes of ``tests``. Versions without weights are left out, and so
    is the attention of a version whose logits are not used (``ncm``).
    """
    line = _line(place, manifest.version)
    labels = tests.labels.cpu()
    first = place.manifest(line[0])
    used = manifest.head_kind != "unused"
    if not bool((labels < len(first.classes)).any()):
        return (), None
    shown = _shown_rows(labels, len(first.classes))
    drifts, maps = [], {manifest.version: now.maps[shown]}
    for number in line[:-1]:
        earlier, model = load_version(place, number)
        known = labels < len(earlier.classes)
        before = look(model, tests.subset(known.to(tests.labels.device)), earlier.input, compute)
        same = Look(*(part[known] for part in now))
        drifts.append(_drift(earlier, before, same, used=used))
        maps[number] = before.maps[torch.searchsorted(known.nonzero()[:, 0], shown)]
    grid = _grid(tests, shown, [line[i] for i in evenly(len(line), COLUMNS)], maps, manifest)
    return tuple(drifts), grid if used else None


def _grid(
    tests: ImageSet,
    shown: Tensor,
    versions: Sequence[int],
    maps: dict[int, Tensor],
    manifest: VersionManifest,
) -> AttentionGrid:
    every = torch.stack([maps[number] for number in versions], dim=1)
    distances = [[_attention(row[:1], one[None])[1] for one in row] for row in every]
    home = tests.labels.device
    corner = (manifest.input.resize - manifest.input.size) // 2
    centre = slice(corner, corner + manifest.input.size)
    pixels = tests.pixels.index_select(0, shown.to(home)).cpu()[:, centre, centre]
    names = tuple(manifest.names[label] for label in tests.labels.cpu()[shown].tolist())
    return AttentionGrid(
        names, tuple(versions), pixels.numpy(), every.numpy(), np.array(distances, np.float32)
    )
