"""Batches for training and evaluation, made from decoded images where they live.

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


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor`` on ``device``; through pinned memory the host does not wait for it."""
    if tensor.device == device:
        return tensor
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


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
    least 2 images or is the only one. Pixels are gathered where they live: on the compute
    device, or in host memory, from where each batch is sent over.

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
        self._device = _placed(torch.device(device))
        self._labels = images.labels.to(self._device)
        self._normalise = Normalise(preprocess, self._device)
        pad = augmenting.padding(augment)
        padded = F.pad(images.pixels, (0, 0, pad, pad, pad, pad)) if pad else images.pixels
        self._pixels = padded.contiguous()
        self._epoch: tuple[int, augmenting.Plan, augmenting.Plan] | None = None

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
        here, there = self._plan(epoch, streams)
        start = step * self._batch_size
        stop = min(self.count, start + self._batch_size)
        rows = rank_slice(start, stop, rank, world)
        target = there.part(rows)
        return Batch(
            self._images(here.part(rows), target),
            self._labels.index_select(0, target.order),
            target.order,
            target.views,
        )

    def _plan(self, epoch: int, streams: Streams) -> tuple[augmenting.Plan, augmenting.Plan]:
        """Return the epoch's plan where the pixels live and where the batch goes."""
        generator = streams(epoch)
        key = generator.initial_seed()
        if self._epoch is None or self._epoch[0] != key:
            plan = augmenting.draw(self.count, self._augment, self._preprocess, generator)
            self._epoch = key, plan.to(self._pixels.device), plan.to(self._device)
        return self._epoch[1:]

    def _images(self, here: augmenting.Plan, target: augmenting.Plan) -> Tensor:
        setting, size = self._augment, self._preprocess.size
        jittered = setting.brightness > 0 or setting.contrast > 0
        if setting.crop == "resized":
            whole = _send(self._pixels.index_select(0, here.order), self._device)
            stored = whole.permute(0, 3, 1, 2).float()
            images = augmenting.resized_crop(stored, target.views, size)
        else:
            crops = _send(augmenting.gather(self._pixels, *here[:2], size), self._device)
            if not jittered:
                return self._normalise(crops)
            images = crops.permute(0, 3, 1, 2).float()
        if jittered:
            pad = augmenting.padding(setting)
            stored_edge = self._preprocess.resize
            shown = augmenting.visible(target.views, stored_edge, pad, size) if pad else None
            images = augmenting.jitter(images, target.colour, shown)
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
    target = _placed(torch.device(device if device is not None else images.pixels.device))
    normalise = Normalise(preprocess, target)
    size = preprocess.size
    corner = (preprocess.resize - size) // 2
    centre = slice(corner, corner + size)
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        crops = images.pixels[rows, centre, centre].contiguous()
        yield normalise(_send(crops, target)), images.labels[rows].to(target)


def evaluation_batches(
    images: ImageSet,
    preprocess: Preprocess,
    batch_size: int,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """Yield the images ``(N, 3, S, S)`` of :func:`labelled_batches`, without the labels."""
    for batch, _ in labelled_batches(images, preprocess, batch_size, device):
        yield batch
