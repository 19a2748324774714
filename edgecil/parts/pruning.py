"""Which increment owns which weight: the mathematics of mask-based pruning (M2KD section 3.3).

Labels are uint8 in the shape of a weight: 0 is free, k > 0 was taken by increment k and never
changes again. After training, an increment takes the largest of the free weights of every
layer, and the others become zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def share_taken(free: int, ratio: float) -> int:
    """Return how many of ``free`` weights an increment takes that prunes the part ``ratio``."""
    return round(free * (1 - ratio))


@torch.no_grad()
def take(weight: Tensor, labels: Tensor, increment: int, ratio: float) -> Tensor:
    """Return ``labels`` after ``increment`` took the largest 1 - ``ratio`` of the free weights.

    The ratio is one of the weights that are still free, in this layer (PackNet's reading).
    """
    free = labels == 0
    size = torch.where(free, weight.abs(), -1.0).flatten()
    chosen = size.argsort(descending=True, stable=True)[: share_taken(int(free.sum()), ratio)]
    taken = labels.flatten().clone()
    taken[chosen] = increment
    return taken.view(labels.shape)


@torch.no_grad()
def as_of(weight: Tensor, labels: Tensor, increment: int) -> Tensor:
    """Return the weight as snapshot ``increment`` had it (eq. (7)): later and free ones are 0."""
    # where(), not a product: -0.0 is another bit pattern.
    return torch.where((labels > 0) & (labels <= increment), weight, 0.0)


def free_share(labels: Mapping[str, Tensor]) -> float:
    """Return the part of all weights that nobody owns, in [0, 1]."""
    free = sum(int((layer == 0).sum()) for layer in labels.values())
    return free / sum(layer.numel() for layer in labels.values())


def full_layers(labels: Mapping[str, Tensor], ratio: float) -> list[str]:
    """Return the layers of which an increment could not take a single weight."""
    counts = {name: int((layer == 0).sum()) for name, layer in labels.items()}
    return [name for name, free in counts.items() if share_taken(free, ratio) == 0]
