"""Pixels and the values that a network sees of them, there and back.

Values are normalised as a network's input is: (pixel / 255 - mean) / std.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgecil.settings import Preprocess


def _statistics(preprocess: Preprocess, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (
        torch.tensor(v, dtype=torch.float32, device=device).view(3, 1, 1)
        for v in (preprocess.mean, preprocess.std)
    )
    return mean, std


def limits(preprocess: Preprocess, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return the values ``(3, 1, 1)`` of black and of white."""
    mean, std = _statistics(preprocess, torch.device(device))
    return -mean / std, (1 - mean) / std


def to_values(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Return the values float32 ``(N, 3, R, R)`` of uint8 ``pixels`` ``(N, R, R, 3)``."""
    mean, std = _statistics(preprocess, pixels.device)
    return ((pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std).contiguous()


def to_pixels(values: Tensor, preprocess: Preprocess) -> Tensor:
    """Return uint8 ``(N, R, R, 3)`` of ``values`` ``(N, 3, R, R)``, clamped and rounded.

    Values that :func:`to_values` made come back to the bit.
    """
    mean, std = _statistics(preprocess, values.device)
    pixels = ((values.detach().float() * std + mean) * 255).round().clamp(0, 255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def to_unit(values: Tensor, preprocess: Preprocess) -> Tensor:
    """Return images in [0, 1] of ``values`` ``(N, 3, S, S)``, clamped."""
    low, high = limits(preprocess, values.device)
    return ((values.float() - low) / (high - low)).clamp(0, 1)


def from_unit(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Return the values of ``images`` in [0, 1] ``(N, 3, S, S)``."""
    low, high = limits(preprocess, images.device)
    return low + images * (high - low)
