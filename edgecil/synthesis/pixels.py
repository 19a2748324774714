"""Images that are optimised themselves, without a generator (DeepInversion; ABD section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecil.data.pixels import limits
from edgecil.settings import Preprocess

JITTER = 2
"""How far an image is rolled at random before each look, in pixels at most (DeepInversion)."""


class Pixels(nn.Module):
    """``count`` normalised images as parameters, optimised in parts of ``batch``.

    Every part is looked at ``steps`` times in a row: training all of them takes
    ``steps`` times the number of parts. Values stay between black and white.
    """

    low: Tensor
    high: Tensor

    def __init__(self, preprocess: Preprocess, count: int, batch: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        size = preprocess.size
        sizes = [min(batch, count - start) for start in range(0, count, batch)]
        if len(sizes) > 1 and sizes[-1] == 1:  # statistics of one image say little
            sizes[-2:] = [sizes[-2] + 1]
        self.parts = nn.ParameterList(torch.randn(n, 3, size, size) for n in sizes)
        low, high = limits(preprocess)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)

    @property
    def total_steps(self) -> int:
        """Steps after which every part was optimised."""
        return self.steps * len(self.parts)

    def _inside(self, part: Tensor) -> Tensor:
        return torch.clamp(part, self.low, self.high)

    def propose(self, count: int, step: int) -> Tensor:
        """Return the images to improve in a step, rolled by a few pixels at random."""
        part = self.parts[min(step // self.steps, len(self.parts) - 1)]
        with torch.no_grad():
            part.copy_(self._inside(part))
        rows, columns = torch.randint(-JITTER, JITTER + 1, (2,)).tolist()
        return torch.roll(part, (rows, columns), dims=(2, 3))

    def all(self) -> Tensor:
        """Return all images ``(N, 3, S, S)``, without gradient."""
        return self._inside(torch.cat([part.detach() for part in self.parts]))

    def draw(self, count: int, skip: int = 0) -> Tensor:
        """Return ``count`` of the images at random, mirrored or not; as a generator does."""
        which = torch.randint(sum(map(len, self.parts)), (skip + count,))[skip:]
        mirrored = torch.rand(skip + count)[skip:].to(self.low.device) < 0.5
        chosen = self._inside(self._picked(which))
        return torch.where(mirrored.view(-1, 1, 1, 1), chosen.flip(3), chosen)

    def _picked(self, rows: Tensor) -> Tensor:
        """Return the images at ``rows``, counted over all parts, of which none is copied whole."""
        first, start = self.parts[0], 0
        picked: Tensor = first.detach().new_empty(len(rows), *first.shape[1:])
        for part in self.parts:
            here = ((rows >= start) & (rows < start + len(part))).nonzero()[:, 0]
            chosen = (rows[here] - start).to(part.device)
            picked[here.to(part.device)] = part.detach()[chosen]
            start += len(part)
        return picked
