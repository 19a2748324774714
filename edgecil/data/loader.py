"""Batches for training and evaluation, made from decoded images in memory or on disk.

The epoch is planned at once: one permutation, all crops, all flips. A step then only indexes.
Every rank of several draws the same plan and takes its slice of each global batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from edgecil.data import augment as augmenting
from edgecil.data.images import Batch, ImageSet
from edgecil.data.reading import reader
from edgecil.data.streams import Streams
from edgecil.errors import DataError
from edgecil.settings import Augment, Preprocess, Training


class Normalise:
    """Turns uint8 pixels into the network's input with one fused multiply and add.

    x / 255 minus the mean over the deviation is x * scale + shift.
    """

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        mean, std = (
            torch.tensor(v, dtype=torch.float64) for v in (preprocess.mean, preprocess.std)
        )
        self._size = preprocess.size
        scale, shift = (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)
        # Repeated along a line of pixels: arithmetic over long rows is several times faster on
        # a CPU than over an innermost axis of three.
        self._scale, self._shift = scale.repeat(self._size), shift.repeat(self._size)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return float32 ``(N, 3, S, S)`` in channels_last of pixels ``(N, S, S, 3)`` in [0, 255].

        The pixels may be uint8 or float; contiguous ones are not copied first.
        """
        count = pixels.shape[0]
        lines = pixels.reshape(count, self._size, self._size * 3).float()
        done = torch.addcmul(self._shift, lines, self._scale)
        return done.view(count, self._size, self._size, 3).permute(0, 3, 1, 2)


def _placed(device: torch.device) -> torch.device:
    # "cuda" and "cuda:0" are one device, but do not compare equal.
    return torch.empty(0, device=device).device


def rank_slice(start: int, stop: int, rank: int, world: int) -> slice:
    """Return the part of the positions [start, stop) of ``rank``; the parts differ by at most one.

    With fewer images than ranks some parts are empty.
    """
    count = stop - start
    return slice(start + count * rank // world, start + count * (rank + 1) // world)


class Loader:
    """Augmented batches of a set, on ``device``, in channels_last.

    ``steps`` is the number of batches of an epoch: the last, smaller one counts when it has at
    least 2 images or is the only one. Stored images are gathered where they live (on the compute
    device, in host memory, on disk) and changed on ``device``: batches do not depend on where.

    Raises:
        DataError: the set is empty.
    """

    def __init__(
        self,
        images: ImageSet,
        preprocess: Preprocess,
        augment: Augment,
        batch_size: int,
        device: torch.device | str,
    ) -> None:
        self.count = len(images)
        if not self.count:
            raise DataError("there is no image to train on")
        self.steps = Training(batch_size=batch_size).steps_for(self.count)
        self._batch_size = batch_size
        self._preprocess = preprocess
        self._augment = augment
        self._jittered = augment.brightness > 0 or augment.contrast > 0
        self._device = _placed(torch.device(device))
        self._labels = images.labels.to(self._device)
        self._normalise = Normalise(preprocess, self._device)
        self._home = images.pixels.device
        self._read = reader(images.pixels, self._device)
        self._epoch: tuple[int, Tensor, augmenting.Plan] | None = None

    def batch(
        self, epoch: int, step: int, streams: Streams, rank: int = 0, world: int = 1
    ) -> Batch:
        """Return the batch of one step, or the slice of it that ``rank`` of ``world`` trains on.

        ``streams(epoch)`` is asked for the epoch's stream: the same streams give the same
        batches, in whatever order they are asked for.

        Raises:
            IndexError: ``step`` is not in [0, ``steps``).
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of an epoch of {self.steps} steps")
        order, plan = self._plan(epoch, streams)
        rows, following = (self._positions(s, rank, world) for s in (step, step + 1))
        part = plan.part(rows)
        return Batch(
            self._changed(self._read(order[rows], order[following]), part),
            self._labels.index_select(0, part.order),
            part.order,
            part.views,
        )

    def _positions(self, step: int, rank: int, world: int) -> slice:
        """Return the positions of a rank's images in a step; none after the last step."""
        if step >= self.steps:
            return slice(0, 0)
        start = step * self._batch_size
        return rank_slice(start, min(self.count, start + self._batch_size), rank, world)

    def _plan(self, epoch: int, streams: Streams) -> tuple[Tensor, augmenting.Plan]:
        """Return the epoch's order where the pixels live, and its plan where batches go."""
        generator = streams(epoch)
        key = generator.initial_seed()
        if self._epoch is None or self._epoch[0] != key:
            plan = augmenting.draw(self.count, self._augment, self._preprocess, generator)
            self._epoch = key, plan.order.to(self._home), plan.to(self._device)
        return self._epoch[1:]

    def _changed(self, stored: Tensor, plan: augmenting.Plan) -> Tensor:
        """Return the network's input ``(n, 3, S, S)`` of stored images uint8 ``(n, R, R, 3)``."""
        setting, size = self._augment, self._preprocess.size
        pad = augmenting.padding(setting)
        if setting.crop == "resized":
            whole = stored.permute(0, 3, 1, 2).float()
            images = augmenting.resized_crop(whole, plan.views, size)
        else:
            padded = F.pad(stored, (0, 0, pad, pad, pad, pad)) if pad else stored
            crops = augmenting.crop(padded, plan.views, size)
            if not self._jittered:
                return self._normalise(crops)
            images = crops.permute(0, 3, 1, 2).float()
        if self._jittered:
            edge = stored.shape[1]
            shown = augmenting.visible(plan.views, edge, pad, size) if pad else None
            images = augmenting.jitter(images, plan.colour, shown)
        return self._normalise(images.permute(0, 2, 3, 1))


def labelled_batches(
    images: ImageSet,
    preprocess: Preprocess,
    batch_size: int,
    device: torch.device | str | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``(images (N, 3, S, S), labels (N,))`` in order: centre crop, no augmentation.

    Images are normalised floats in channels_last on ``device`` (default: where the pixels are).
    """
    home = images.pixels.device
    target = _placed(torch.device(device if device is not None else home))
    normalise = Normalise(preprocess, target)
    read = reader(images.pixels, target)
    corner = (preprocess.resize - preprocess.size) // 2
    centre = slice(corner, corner + preprocess.size)
    order = torch.arange(len(images), device=home)
    for start in range(0, len(images), batch_size):
        stop = start + batch_size
        stored = read(order[start:stop], order[stop : stop + batch_size])
        crops = stored[:, centre, centre].contiguous()
        yield normalise(crops), images.labels[start:stop].to(target)


def evaluation_batches(
    images: ImageSet,
    preprocess: Preprocess,
    batch_size: int,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """Yield the images ``(N, 3, S, S)`` of :func:`labelled_batches`, without the labels."""
    for batch, _ in labelled_batches(images, preprocess, batch_size, device):
        yield batch
