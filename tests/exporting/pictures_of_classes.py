"""Images that a small network learns in seconds."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from edgecil.data.images import ImageSet
from edgecil.settings import Preprocess

CLASSES = 6
SMALL = Preprocess(32, 40, (0.5, 0.45, 0.4), (0.25, 0.24, 0.26))
LABELS = tuple((f"class {i} é", 1 if i < 4 else 2) for i in range(CLASSES))


def pictures(count: int, side: int, seed: int) -> ImageSet:
    """Return random images that a small network can tell apart: a pattern per class, in noise."""
    random = torch.Generator().manual_seed(seed)
    patterns = torch.rand(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % CLASSES
    base = F.interpolate(patterns[labels], size=(side, side), mode="bilinear")
    noise = torch.randn(count, 3, side // 4, side // 4, generator=random)
    noisy = base + 0.12 * F.interpolate(noise, size=(side, side), mode="nearest")
    pixels = (noisy.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return ImageSet(pixels, labels)


def normalised(pixels: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """Return the centre crops of stored images as the network takes them, in float64 steps."""
    inset = (preprocess.resize - preprocess.size) // 2
    stop = inset + preprocess.size
    crops = pixels[:, inset:stop, inset:stop].double() / 255
    mean, std = torch.tensor(preprocess.mean).double(), torch.tensor(preprocess.std).double()
    return ((crops - mean) / std).permute(0, 3, 1, 2).float()
