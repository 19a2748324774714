"""Stored images of one batch after another, on the device that computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgecil.data.disk import DiskPixels
from edgecil.data.images import Pixels

Reader = Callable[[Tensor, Tensor], Tensor]
"""``(rows, following) -> uint8 (n, R, R, 3)``: the images at ``rows``, valid until the next call;
``following`` are the rows that will probably be asked for then."""


def reader(pixels: Pixels, device: torch.device) -> Reader:
    """Return the reader of a set; rows are int64 where the pixels are."""
    if isinstance(pixels, DiskPixels):
        return ReadAhead(pixels, device)
    return lambda rows, following: _send(pixels.index_select(0, rows), device)


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor`` on ``device``; through pinned memory the host does not wait for it."""
    if tensor.device == device:
        return tensor
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class _Coming(NamedTuple):
    rows: NDArray[np.int64]
    images: Future[Tensor]


class ReadAhead:
    """Reads the images of the next batch in a thread while the present one is computed on.

    Two buffers take turns: the thread fills one while the other is in use. For a GPU they are
    pinned, and the thread copies them over in a CUDA stream of its own. It uses no arithmetic of
    torch, which would start a second set of worker threads.
    """

    def __init__(self, pixels: DiskPixels, device: torch.device) -> None:
        self._pixels, self._device, self._cuda = pixels, device, device.type == "cuda"
        self._buffers = [self._room(0), self._room(0)]
        self._coming: _Coming | None = None
        self._pool = ThreadPoolExecutor(1, "read-ahead")
        self._stream = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]

    def __call__(self, rows: Tensor, following: Tensor) -> Tensor:
        """Return the images at ``rows``; ``following`` are read in the meantime.

        Raises:
            WorkspaceError: the disk fails.
        """
        wanted, coming = rows.numpy(), self._coming
        if coming is None or not np.array_equal(coming.rows, wanted):
            coming = self._begin(wanted)
        images = coming.images.result()
        self._coming = self._begin(following.numpy()) if len(following) else None
        if self._cuda:
            # Taken from the thread's stream: not to be given to its next copy while in use here.
            images.record_stream(torch.cuda.current_stream(self._device))
        return images

    def _begin(self, rows: NDArray[np.int64]) -> _Coming:
        return _Coming(rows, self._pool.submit(self._read, rows))

    def _room(self, count: int) -> Tensor:
        shape = (count, *self._pixels.shape[1:])
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self._cuda)

    def _read(self, rows: NDArray[np.int64]) -> Tensor:
        self._buffers.reverse()
        if len(self._buffers[0]) < len(rows):
            self._buffers[0] = self._room(len(rows))
        images = self._buffers[0][: len(rows)]
        self._pixels.read(rows, images.numpy())
        if self._stream is None:
            return images
        with torch.cuda.stream(self._stream):
            sent = images.to(self._device, non_blocking=True)
        # The thread may wait: with its result the images are there and the buffer is free.
        self._stream.synchronize()
        return sent
