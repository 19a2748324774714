"""A variational autoencoder of images in [0, 1]: what deep generative replay draws from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edgecil.nets.build import array_shapes

LARGEST_MAP = 6
"""Side of the smallest map at most: larger images are halved more than three times."""


def halvings(size: int) -> int:
    """Return how often images of ``size`` pixels are halved: 3 up to 48, 4 up to 96, and so on."""
    count = 3
    while size > LARGEST_MAP * 2**count:
        count += 1
    return count


@dataclass(frozen=True)
class VaeSpec:
    """The sizes of a VAE; called with the side of an image it returns the shapes of its arrays.

    A field of kept memory takes it as its shape.
    """

    width: int = 64
    """Channels of the first map; the innermost ones have 8 times as many."""
    latent: int = 1024

    def build(self, size: int, arrays: Mapping[str, NDArray[Any]] | None = None) -> Vae:
        """Return a VAE for images of ``size`` pixels: with ``arrays`` as kept, or untrained."""
        vae = Vae(self, size)
        if arrays is not None:
            kept = {name: torch.from_numpy(a) for name, a in arrays.items()}
            vae.load_state_dict(kept, assign=True)
        return vae

    def __call__(self, size: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of everything that a VAE for images of ``size`` consists of."""
        with torch.device("meta"):
            return array_shapes(Vae(self, size))


class Vae(nn.Module):
    """Images ``(N, 3, S, S)`` in [0, 1] to a latent distribution, and back to logits of pixels.

    Convolutions of kernel 4 and stride 2 halve the map, transposed ones double it; there are no
    batch norms. With the default sizes it has 28,722,179 parameters for images of 32 pixels,
    those of the VAE in ABD's released code. That code has no other size: the further halvings
    of larger images are this project's choice.
    """

    def __init__(self, spec: VaeSpec, size: int) -> None:
        super().__init__()
        self.spec, self.size = spec, size
        more, width = halvings(size) - 3, spec.width
        self.inner = (8 * width, *(-(-size // 2 ** halvings(size)),) * 2)
        down = (3, width, 2 * width, *(8 * width,) * (1 + more))
        up = (*(8 * width,) * (1 + more), 4 * width, width, 3)
        self.encoder = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(before, after, 4, 2, 1), nn.ReLU(inplace=True))
                for before, after in itertools.pairwise(down)
            )
        )
        values = self.inner[0] * self.inner[1] * self.inner[2]
        self.mean = nn.Linear(values, spec.latent)
        self.log_variance = nn.Linear(values, spec.latent)
        self.project = nn.Linear(spec.latent, values)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(up):
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.ReLU(inplace=True)]
        self.decoder = nn.Sequential(*layers[:-1])

    @property
    def _edge(self) -> tuple[int, int]:
        """Pixels by which an image is padded, before and after, to halve without a rest."""
        spare = self.inner[1] * 2 ** halvings(self.size) - self.size
        return spare // 2, spare - spare // 2

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the variance, each ``(N, latent)`` in float32."""
        before, after = self._edge
        padded = F.pad(images, (before, after, before, after)) if after else images
        inner = self.encoder(padded).flatten(1)
        return self.mean(inner).float(), self.log_variance(inner).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Return logits of pixels ``(N, 3, S, S)`` of latents ``(N, latent)``."""
        logits: Tensor = self.decoder(self.project(latents).unflatten(1, self.inner))
        first, stop = self._edge[0], self._edge[0] + self.size
        return logits[:, :, first:stop, first:stop]

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, mean and log-variance of ``images``, reparametrised with ``noise``.

        ``noise`` ``(N, latent)`` is drawn from N(0, I).
        """
        mean, log_variance = self.encode(images)
        return self.decode(mean + noise * (log_variance / 2).exp()), mean, log_variance

    def noise(self, count: int, skip: int = 0) -> Tensor:
        """Return ``(count, latent)`` of N(0, I), from the global random numbers.

        ``skip`` rows come before them in the same draw: those of other ranks.
        """
        place = self.project.weight
        drawn = torch.randn(skip + count, self.spec.latent, device=place.device, dtype=place.dtype)
        return drawn[skip:]

    @torch.no_grad()
    def draw(self, count: int, skip: int = 0) -> Tensor:
        """Return ``count`` images ``(N, 3, S, S)`` in [0, 1] of fresh noise, without gradient."""
        return torch.sigmoid(self.decode(self.noise(count, skip)).float())
