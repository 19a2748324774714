"""A generator of images: fresh noise in, normalised images out (ABD section 7; MFGR)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgecil.nets.build import array_shapes

LATENT = 1000
CONV_EPS = 0.8
"""eps of the batch norms behind convolutions: in ABD's and MFGR's code a decay once meant for
another argument. It damps channels of small variance, and images look different without."""
SMALL, LARGE = 48, 128
"""Image sides in pixels from which on a generator has three and five upsamplings, not two."""


def widths_for(size: int) -> tuple[int, ...]:
    """Return the channels of the first map and after each doubling, for images of ``size``."""
    if size < SMALL:
        return (128, 128, 64)
    return (128, 128, 128, 64) if size < LARGE else (64,) * 6


class Generator(nn.Module):
    """Noise ``(N, latent)`` to images ``(N, 3, S, S)`` as a network takes them, normalised.

    A linear layer makes a small map, nearest upsampling and convolutions the image. The last
    batch norm has no parameters: in train mode every batch has mean 0 and variance 1 in each
    channel, as normalised images have on the whole.
    """

    def __init__(
        self, size: int, latent: int = LATENT, widths: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        widths = widths or widths_for(size)
        self.size, self.latent = size, latent
        side = -(-size // 2 ** (len(widths) - 1))
        self.linear = nn.Linear(latent, widths[0] * side * side)
        self.unflatten = nn.Unflatten(1, (widths[0], side, side))
        self.first = nn.BatchNorm2d(widths[0])
        self.doublings = nn.ModuleList(
            nn.Sequential(
                nn.Upsample(scale_factor=2),
                nn.Conv2d(before, after, 3, padding=1),
                nn.BatchNorm2d(after, eps=CONV_EPS),
                nn.LeakyReLU(0.2, inplace=True),
            )
            for before, after in itertools.pairwise(widths)
        )
        self.to_rgb = nn.Conv2d(widths[-1], 3, 3, padding=1)
        self.last = nn.BatchNorm2d(3, affine=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Return images ``(N, 3, S, S)`` of noise ``(N, latent)``."""
        x = self.unflatten(self.linear(latents)).contiguous(memory_format=torch.channels_last)
        x = self.first(x)
        for doubling in self.doublings:
            x = doubling(x)
        x = torch.tanh(self.to_rgb(x))
        edge = (x.shape[2] - self.size) // 2
        x = F.pad(x, (-edge, edge + self.size - x.shape[3]) * 2) if x.shape[2] > self.size else x
        images: Tensor = self.last(x)
        return images

    def propose(self, count: int, step: int) -> Tensor:
        """Return ``count`` images to learn from, in train mode."""
        self.train()
        return self.draw(count)

    def draw(self, count: int, skip: int = 0) -> Tensor:
        """Return ``count`` images of fresh noise from the global random numbers.

        ``skip`` images come before them in the same draw: those of other ranks.
        """
        place = self.linear.weight
        noise = torch.randn(skip + count, self.latent, device=place.device, dtype=place.dtype)
        images: Tensor = self(noise[skip:])
        return images


def generator_shapes(size: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of everything that a generator for images of ``size`` consists of."""
    with torch.device("meta"):
        return array_shapes(Generator(size))
