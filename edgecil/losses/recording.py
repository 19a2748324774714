"""What MFGR asks of generated images beyond the losses of :mod:`edgecil.losses.synthesis`.

Its one-hot loss is :func:`~edgecil.losses.synthesis.content` at temperature 1, its class
diversity :func:`~edgecil.losses.synthesis.negative_entropy`, its alignment with batch-norm
statistics :func:`~edgecil.losses.synthesis.statistics_distance`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgecil.losses.synthesis import at_least_float32

PAIRS = 200
"""Pairs of images that are compared in a step (MFGR section 5.2)."""


def sample_diversity(images: Tensor, pairs: int = PAIRS) -> Tensor:
    """Return minus the symmetric KL divergence of image pairs, mean over pairs; a scalar.

    MFGR eq. (6), with its factor 1/2. An image ``(C, H, W)`` is a distribution by the softmax of
    all its values. The first half of ``images`` ``(N, C, H, W)``, N at least 2, is paired with
    the second, up to ``pairs`` pairs: images of fresh noise are in random order already.

    Raises:
        ValueError: there is no pair.
    """
    half = len(images) // 2
    if half == 0:
        raise ValueError("the diversity of images needs two of them")
    count = min(half, pairs)
    chosen = torch.cat([images[:count], images[half : half + count]])
    logs = torch.log_softmax(at_least_float32(chosen).flatten(1), dim=1)
    first, second = logs[:count], logs[count:]
    # KL(p|q) + KL(q|p) = sum of (p - q)(log p - log q)
    divergence = ((first.exp() - second.exp()) * (first - second)).sum(dim=1)
    return -0.5 * divergence.mean()


def activation(features: Tensor) -> Tensor:
    """Return minus the mean absolute value of features ``(N, D)``; a scalar.

    DAFL's activation loss, which is in MFGR's released code and not in the paper.
    """
    return -at_least_float32(features).abs().mean()
