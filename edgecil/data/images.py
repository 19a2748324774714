"""Decoded images, in memory or on disk, and the batches that a step sees."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgecil.data.disk import DiskPixels, PixelFile

Pixels = Tensor | DiskPixels
_CHUNK = 64
"""Images that a thread works on at once."""


class ImageSet(NamedTuple):
    """Decoded images and their labels.

    ``pixels`` is uint8 ``(N, R, R, 3)``, ``labels`` int64 ``(N,)``: rows of the head, in order
    of introduction of the classes. Both live where batches are gathered from;
    ``pixels.index_select(0, rows)`` gives images in memory, wherever they live.
    """

    pixels: Pixels
    labels: Tensor

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    @property
    def on_disk(self) -> bool:
        """Whether batches are read from disk."""
        return isinstance(self.pixels, DiskPixels)

    def subset(self, index: Tensor) -> ImageSet:
        """Return the images at ``index`` (int64 or bool ``(N,)``), in that order."""
        return ImageSet(self.pixels[index], self.labels[index])

    def rows_of(self, index: Tensor) -> ImageSet:
        """Return the images at ``index`` (int64 ``(N,)``) without a copy of any: on the host,
        read row by row like those on disk."""
        host = self.to("cpu")
        return ImageSet(DiskPixels.joined([host.pixels])[index], host.labels[index])

    def changed(self, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> ImageSet:
        """Return the set with a function of an image uint8 ``(R, R, 3)`` applied to each.

        Several threads apply it. Images on disk stay there, beside those that they are made of.
        """
        host = self.pixels.to("cpu")
        made = host.room() if isinstance(host, DiskPixels) else np.empty(host.shape, np.uint8)

        def work(start: int) -> None:
            for row in range(start, min(len(self), start + _CHUNK)):
                made[row] = change(host.index_select(0, torch.tensor([row]))[0].numpy())

        with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "change") as pool:
            list(pool.map(work, range(0, len(self), _CHUNK)))
        pixels = DiskPixels([made]) if isinstance(made, PixelFile) else torch.from_numpy(made)
        return ImageSet(pixels.to(self.pixels.device), self.labels)

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the set on another device."""
        return ImageSet(self.pixels.to(device), self.labels.to(device))


def concat(sets: Sequence[ImageSet]) -> ImageSet:
    """Return all images of several sets of one size, in order; images on disk stay there."""
    if len({s.pixels.device for s in sets}) > 1:
        sets = [s.to("cpu") for s in sets]
    pixels = [s.pixels for s in sets]
    tensors = [p for p in pixels if isinstance(p, Tensor)]
    joined = torch.cat(tensors) if len(tensors) == len(pixels) else DiskPixels.joined(pixels)
    return ImageSet(joined, torch.cat([s.labels for s in sets]))


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step trains on.

    ``images`` are normalised floats ``(N, 3, S, S)`` in channels_last, ``labels`` int64
    ``(N,)``. ``index`` int64 ``(N,)`` says which rows of the view they are and ``views`` int64
    how each was augmented, so that a step may cache per image and view: ``(N, 3)`` row offset,
    column offset, flipped; after a resized crop ``(N, 5)``, height and width of the crop
    follow. Colour jitter is not in ``views``: with it no two views are equal.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    views: Tensor
