"""Which images of a class are kept to be trained on again.

Rankings are functions ``(features (N, D), count, generator) -> int64 indices``, best first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

_DOT_PICKS = 1000


def _points(features: Tensor, normalise: bool) -> Tensor:
    points = features.double()
    return torch.nn.functional.normalize(points) if normalise else points


@torch.no_grad()
def herding(
    features: Tensor, count: int, generator: Generator | None = None, *, normalise: bool = True
) -> Tensor:
    """Return int64 indices of at most ``count`` images whose running mean follows the class mean.

    The k-th pick (from 0) is argmin_i ||mu - (phi_i + sum of the picks) / (k + 1)|| over the
    images not picked yet; features ``(N, D)`` are L2-normalised unless told otherwise (iCaRL,
    Algorithm 4). One matrix product per pick: with t = (k + 1) mu - sum, the squared distance
    is ||phi_i||^2 - 2 phi_i . t, up to a constant and a factor.
    """
    points = _points(features, normalise)
    squares = points.square().sum(1)
    mean, total = points.mean(0), points.new_zeros(points.shape[1])
    picks: list[int] = []
    for k in range(min(count, len(points))):
        pick = int(torch.addmv(squares, points, (k + 1) * mean - total, alpha=-2).argmin())
        picks.append(pick)
        total += points[pick]
        squares[pick] = torch.inf
    return torch.tensor(picks, dtype=torch.int64)


@torch.no_grad()
def herding_dot(features: Tensor, count: int, generator: Generator | None = None) -> Tensor:
    """Return the picks of iCaRL's published code: int64 indices of at most ``count`` images.

    w starts as the mean; pick argmax_i w . phi_i, then w += mu - phi_pick. Of unit vectors these
    are the picks of :func:`herding`, except that an image may be picked again and is listed once;
    after 1000 picks the list ends, perhaps short.
    """
    points = _points(features, True)
    mean = points.mean(0)
    weight = mean.clone()
    picks: dict[int, None] = {}
    for _ in range(_DOT_PICKS if len(points) else 0):
        if len(picks) >= min(count, len(points)):
            break
        pick = int((points @ weight).argmax())
        picks[pick] = None
        weight += mean - points[pick]
    return torch.tensor(list(picks), dtype=torch.int64)


def nearest_to_mean(
    features: Tensor, count: int, generator: Generator | None = None, *, normalise: bool = True
) -> Tensor:
    """Return int64 indices of the ``count`` images nearest to the class mean, nearest first."""
    points = _points(features, normalise)
    return (points - points.mean(0)).square().sum(1).argsort(stable=True)[:count].cpu()


def random_ranking(features: Tensor, count: int, generator: Generator | None = None) -> Tensor:
    """Return int64 indices of ``count`` images in random order."""
    return torch.randperm(len(features), generator=generator)[:count]


BLIND = (random_ranking,)
"""Rankings that look at the number of images alone: their features need not be computed."""


def keep_all(features: Tensor, count: int, generator: Generator | None = None) -> Tensor:
    """Return int64 indices of all images in their order."""
    return torch.arange(len(features))


def interleave(parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Return ranked lists merged into one whose prefixes hold each in its share.

    The first image of every list comes before all others: a short prefix holds one of each.
    ``sizes`` are the numbers of images that the lists rank the best of; the order inside a list
    stays.
    """
    places = [
        (torch.arange(len(part), dtype=torch.float64) + 0.5) / max(1, size)
        for part, size in zip(parts, sizes, strict=True)
    ]
    for place in places:
        place[:1] = 0
    return torch.cat(list(parts))[torch.cat(places).argsort(stable=True)]
