"""Losses of images that are made to look, to a trained network, like those it was trained on.

``logits`` are ``(N, K)``, over the classes that may be shown and no other units. Where a paper
prints a norm or a sum and its weight belongs to a mean, the mean is here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BLUR = math.sqrt(2)
"""Deviation of the blur in pixels: ABD's kernel is exp(-d^2 / 4). The paper gives none."""
TAPS = 5


class LayerStatistics(NamedTuple):
    """What one batch norm sees of a batch, and what it remembers; all ``(channels,)``.

    Variances are the biased ones, which batch norms normalise by. ``eps`` is the layer's.
    """

    mean: Tensor
    variance: Tensor
    running_mean: Tensor
    running_variance: Tensor
    eps: float


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float32, or as it is where it is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def content(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the cross-entropy with the most likely class, mean over images; a scalar.

    ABD eqs. (2) and (3); MFGR's one-hot loss with ``temperature`` 1.
    """
    labels = logits.detach().argmax(dim=1)
    return F.cross_entropy(at_least_float32(logits) / temperature, labels)


def negative_entropy(logits: Tensor) -> Tensor:
    """Return minus the entropy of the mean class probabilities, in nats; a scalar.

    In [-log K, 0], smallest where classes are shown equally often (ABD eq. (1); MFGR's class
    diversity). With one class it is 0 whatever is shown.
    """
    shares = torch.softmax(at_least_float32(logits), dim=1).mean(dim=0)
    # A class of probability 0 adds nothing, but the slope of its logarithm would be infinite.
    tiny = torch.finfo(shares.dtype).tiny
    return (shares * torch.log(shares.clamp_min(tiny))).sum()


def layer_divergence(layer: LayerStatistics) -> Tensor:
    """Return KL(N(mu, s^2) || N(mu', s'^2)) of remembered and batch statistics; a scalar.

    Mean over channels (ABD eq. (5)). Both variances get the layer's eps, as in the batch norm
    itself: a channel that is constant has no logarithm.
    """
    batch = layer.variance + layer.eps
    running = layer.running_variance + layer.eps
    shift = (layer.running_mean - layer.mean).square()
    return (0.5 * torch.log(batch / running) - 0.5 * (1 - (running + shift) / batch)).mean()


def statistics_divergence(layers: Iterable[LayerStatistics]) -> Tensor:
    """Return the mean over batch norms of :func:`layer_divergence` (ABD eq. (4)); a scalar."""
    return torch.stack([layer_divergence(layer) for layer in layers]).mean()


def statistics_distance(layers: Iterable[LayerStatistics]) -> Tensor:
    """Return the mean over batch norms of |mu' - mu| + |s'^2 - s^2|, Euclidean norms; a scalar.

    DeepInversion's alignment, and MFGR eq. (5), which prints a sum over layers.
    """
    distances = [
        (layer.mean - layer.running_mean).norm() + (layer.variance - layer.running_variance).norm()
        for layer in layers
    ]
    return torch.stack(distances).mean()


def blurred(images: Tensor, deviation: float = BLUR) -> Tensor:
    """Return images ``(N, 3, S, S)`` after a Gaussian blur of 5 x 5 pixels, edges reflected.

    Images of fewer than 3 pixels cannot be reflected: S must be at least 3.
    """
    offsets = torch.arange(TAPS, dtype=images.dtype, device=images.device) - TAPS // 2
    line = torch.exp(-offsets.square() / (2 * deviation**2))
    line = line / line.sum()
    channels, pad = images.shape[1], TAPS // 2
    padded = F.pad(images, (pad, pad, pad, pad), mode="reflect")
    rows = F.conv2d(padded, line.view(1, 1, 1, -1).repeat(channels, 1, 1, 1), groups=channels)
    return F.conv2d(rows, line.view(1, 1, -1, 1).repeat(channels, 1, 1, 1), groups=channels)


def roughness(images: Tensor, deviation: float = BLUR) -> Tensor:
    """Return the mean squared difference of images and their blur (ABD eq. (6)); a scalar."""
    return F.mse_loss(images, blurred(images, deviation))
