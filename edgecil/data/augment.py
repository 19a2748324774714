"""Random changes of training images: drawn for a whole epoch at once, applied to a batch at once.

Everything here is batched tensor arithmetic without boolean masks and without reading a value
back, so that on a GPU no step waits for the host. Pixels stay in [0, 255] until they are
normalised.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from edgecil.settings import Augment, Preprocess

_TRIES = 10  # as torchvision's RandomResizedCrop; the whole image when none fits
_ASPECT = (3 / 4, 4 / 3)
# Weights of red, green and blue in the luma of ITU-R BT.601, which Pillow uses for grey.
_GREY = (0.299, 0.587, 0.114)


class Plan(NamedTuple):
    """What happens in one epoch, row p being the image at position p.

    ``order`` int64 ``(N,)`` is a permutation of the images, ``views`` int64 ``(N, 3)`` or
    ``(N, 5)`` is what :class:`~edgecil.data.images.Batch` says, ``colour`` float32 ``(N, 2)``
    holds the factors of brightness and contrast.
    """

    order: Tensor
    views: Tensor
    colour: Tensor

    def to(self, device: torch.device) -> Plan:
        """Return the plan on another device."""
        return Plan(*(part.to(device) for part in self))

    def part(self, rows: slice) -> Plan:
        """Return the plan of the positions ``rows``."""
        return Plan(*(part[rows] for part in self))


def padding(augment: Augment) -> int:
    """Return the black pixels that are added on every side before cropping."""
    return augment.pad if augment.crop == "pad" else 0


def draw(count: int, augment: Augment, preprocess: Preprocess, generator: torch.Generator) -> Plan:
    """Return the plan of one epoch over ``count`` stored images, drawn from ``generator``.

    Offsets count from the corner of the padded image for ``crop="pad"``, of the stored image
    otherwise.
    """
    order = torch.randperm(count, generator=generator)
    spare = preprocess.resize + 2 * padding(augment) - preprocess.size
    if augment.crop == "pad":
        columns = [torch.randint(spare + 1, (count, 2), generator=generator)]
    elif augment.crop == "centre":
        columns = [torch.full((count, 2), spare // 2)]
    else:
        columns = list(_boxes(count, preprocess.resize, augment.area, generator))
    flips = torch.randint(2, (count, 1), generator=generator)
    columns.insert(1, flips if augment.flip else torch.zeros_like(flips))
    widths = torch.tensor((augment.brightness, augment.contrast))
    uniform = torch.rand((count, 2), generator=generator)
    colour = (1 + (2 * uniform - 1) * widths).clamp_min(0)
    return Plan(order, torch.cat(columns, 1), colour)


def _boxes(
    count: int, stored: int, area: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return corners ``(N, 2)`` and sizes ``(N, 2)``, rows first, of crops inside the image.

    The distribution of torchvision's RandomResizedCrop: the first of ten tries that fits.
    """
    tries = torch.rand((count, _TRIES, 2), generator=generator, dtype=torch.float64)
    low, high = (math.log(a) for a in _ASPECT)
    pixels = (area[0] + (area[1] - area[0]) * tries[..., 0]) * stored**2
    ratio = torch.exp(low + (high - low) * tries[..., 1])
    sizes = torch.stack(((pixels / ratio).sqrt(), (pixels * ratio).sqrt()), 2).round().long()
    fits = ((sizes >= 1) & (sizes <= stored)).all(2)
    first = fits.byte().argmax(1)
    every = torch.arange(count)
    size = torch.where(fits[every, first, None], sizes[every, first], stored)
    room = torch.rand((count, 2), generator=generator, dtype=torch.float64)
    return (room * (stored - size + 1)).long(), size


def crop(pixels: Tensor, views: Tensor, size: int) -> Tensor:
    """Return uint8 crops ``(n, S, S, 3)`` of ``pixels`` ``(n, P, P, 3)``: one gather.

    Crop and flip are in the index. Pixels are addressed in one flat axis, several times faster
    on a CPU than three indices that are broadcast against each other.
    """
    count, edge = pixels.shape[:2]
    steps = torch.arange(size, device=pixels.device)
    image = torch.arange(count, device=pixels.device)[:, None]
    row, column, flip = views[:, :3].unsqueeze(2).unbind(1)
    rows = (image * edge + row + steps) * edge
    columns = column + flip * (size - 1) + (1 - 2 * flip) * steps
    index = rows[:, :, None] + columns[:, None, :]
    picked = pixels.view(-1, 3).index_select(0, index.view(-1))
    return picked.view(count, size, size, 3)


def resized_crop(images: Tensor, views: Tensor, size: int) -> Tensor:
    """Return crops ``(n, 3, S, S)`` of float ``images`` ``(n, 3, R, R)``, resized bilinearly.

    Samples are clamped to the crop, as if it had been cut out first. There is no antialiasing:
    a crop is at most a little larger than the output.
    """
    edge = images.shape[2]
    views = views.to(images.dtype)
    row, column, flip, height, width = views.unsqueeze(2).unbind(1)
    centres = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) / size
    mirrored = centres + flip * (1 - 2 * centres)
    lines = []
    for corner, length, at in ((column, width, mirrored), (row, height, centres)):
        pixel = corner + (at * length - 0.5).clamp_min(0).minimum(length - 1)
        lines.append((2 * pixel + 1) / edge - 1)
    shape = (images.shape[0], size, size)
    grid = torch.stack((lines[0][:, None, :].expand(shape), lines[1][:, :, None].expand(shape)), 3)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def visible(views: Tensor, stored: int, pad: int, size: int) -> Tensor:
    """Return 1.0 where a crop of the padded image shows the image and 0.0 where it shows padding.

    Shape ``(n, 1, S, S)``, float32.
    """
    at = torch.arange(size, device=views.device)
    rows, columns = ((views[:, i, None] + at) for i in (0, 1))
    columns = torch.where(views[:, 2, None] > 0, columns.flip(1), columns)
    inside = [((v >= pad) & (v < pad + stored)).float() for v in (rows, columns)]
    return (inside[0][:, :, None] * inside[1][:, None, :])[:, None]


def jitter(images: Tensor, colour: Tensor, shown: Tensor | None) -> Tensor:
    """Return ``images`` ``(n, 3, S, S)`` in [0, 255] with brightness and contrast changed.

    ``colour`` ``(n, 2)`` holds both factors. Contrast moves pixels away from the mean grey of
    the image's visible part; padding (``shown`` 0) stays black. Their order does not matter
    but for clipping.
    """
    bright, contrast = colour[:, :, None, None, None].unbind(1)
    lit = (images * bright).clamp_max(255)
    red, green, blue = _GREY
    grey = red * lit[:, :1] + green * lit[:, 1:2] + blue * lit[:, 2:]
    if shown is None:
        mean = grey.mean((2, 3), keepdim=True)
    else:
        mean = grey.sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True).clamp_min(1)
    changed = torch.lerp(mean, lit, contrast).clamp(0, 255)
    return changed if shown is None else changed * shown
