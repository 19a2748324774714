"""Exemplars whose pixels are parameters: from stored images to parameters and back.

Parameters are in units of the network's input, as in Mnemonics (Liu et al. 2020, section 5.1): a
rate means the same for every channel. What is stored are uint8 pixels; an image that was not
changed comes back as it was, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgecil.data.images import ImageSet
from edgecil.data.pixels import limits, to_pixels
from edgecil.settings import Preprocess


def halves(labels: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of two disjoint halves A and B of the exemplars that are ``usable``.

    ``labels`` int64 ``(K,)`` lie class after class, ``usable`` is bool ``(K,)``. Of every class
    each half has every second exemplar by rank, so that a prefix is divided evenly too; classes
    take turns in which half the first one belongs to (eq. (10), which leaves the split open).
    """
    rows = torch.nonzero(usable)[:, 0]
    mine = labels[rows]
    before = torch.searchsorted(mine.contiguous(), mine.contiguous())
    rank = torch.arange(len(rows), device=rows.device) - before
    turns = torch.unique(mine, return_inverse=True)[1]
    second = (rank + turns) % 2 == 1
    return rows[~second], rows[second]


class Learned(nn.Module):
    """Images as parameters: ``values`` ``(M, 3, R, R)``, their ``labels`` and their ``rows``.

    ``rows`` are those of the set that they begin as; -1 where that is not decided yet. There may
    be more rows than values: what may be stored as it is.
    """

    rows: Tensor
    labels: Tensor

    def __init__(self, rows: Tensor, labels: Tensor, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.register_buffer("rows", rows)
        self.register_buffer("labels", labels)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Become what is given, however many images these are: a run may go on with more memory."""
        for name, own in self.state_dict(keep_vars=True).items():
            own.data = own.new_empty(state_dict[name].shape)
        return super().load_state_dict(state_dict, strict, assign)

    @property
    def count(self) -> int:
        """M: how many images are parameters; no length, or an empty module would be false."""
        return len(self.values)

    @property
    def decided(self) -> bool:
        """Whether it is known which images these are."""
        return bool((self.rows >= 0).any())

    def inputs(self, preprocess: Preprocess) -> Tensor:
        """Return what the network sees of them, ``(M, 3, S, S)``: the centre, differentiably."""
        corner = (preprocess.resize - preprocess.size) // 2
        return self.values.narrow(2, corner, preprocess.size).narrow(3, corner, preprocess.size)

    @torch.no_grad()
    def project(self, preprocess: Preprocess) -> None:
        """Move values that no pixel can have to the nearest one that a pixel can have."""
        self.values.clamp_(*limits(preprocess, self.values.device))

    def images(self, preprocess: Preprocess) -> ImageSet:
        """Return the images as they would be stored by a codec without loss."""
        return ImageSet(to_pixels(self.values, preprocess), self.labels)
