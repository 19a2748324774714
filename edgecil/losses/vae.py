"""Losses of a variational autoencoder whose images lie in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def reconstruction(logits: Tensor, images: Tensor, weights: Tensor) -> Tensor:
    """Return the binary cross-entropy of pixels, each image's times its weight; a scalar.

    ``logits`` ``(N, C, H, W)`` are the decoder's outputs before the sigmoid, ``images`` of the
    same shape lie in [0, 1], ``weights`` is ``(N,)``. Mean over the pixels of an image and over
    images; it is not divided by the mean weight (as ABD's code runs deep generative replay).
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    losses = F.binary_cross_entropy_with_logits(logits.to(wide), images.to(wide), reduction="none")
    return (losses.mean(dim=(1, 2, 3)) * weights).mean()


def latent_divergence(mean: Tensor, log_variance: Tensor, values: int) -> Tensor:
    """Return the divergence of N(mean, variance) from N(0, I), per value of an image; a scalar.

    ``mean`` and ``log_variance`` are ``(N, L)``. The sum over latent dimensions (Kingma and
    Welling 2014, appendix B) is averaged over images and divided by ``values``, the C x H x W
    over which the reconstruction is a mean.
    """
    wide = torch.promote_types(mean.dtype, torch.float32)
    mean, log_variance = mean.to(wide), log_variance.to(wide)
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)
    return divergence.mean() / values
