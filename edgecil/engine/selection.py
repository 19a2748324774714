"""Exemplars at the end of an increment: ranked, encoded within the budget, read back."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgecil.data.images import ImageSet, concat
from edgecil.exemplars import build_exemplars, interleave
from edgecil.memory.budget import Budget, most_per_class
from edgecil.memory.fields import COUNTS, IMAGES, Dimensions, Field
from edgecil.memory.store import Store
from edgecil.method import Context, Selection
from edgecil.nets.build import shapes, stage_channels
from edgecil.nets.net import NetSpec
from edgecil.synthesis.generator import generator_shapes
from edgecil_runtime.images import fit_square


def dimensions(
    spec: NetSpec,
    groups: tuple[int, ...],
    side: int,
    exemplars: int = 0,
    size: int | None = None,
) -> Dimensions:
    """Return the sizes of everything a method may keep.

    ``side`` is a stored image's edge, ``size`` that of the network's input where it is another.
    """
    channels = stage_channels(spec)
    early = {f"D_{number}": width for number, width in enumerate(channels, start=1)}
    generator = generator_shapes(side if size is None else size)
    trees = {**shapes(spec, sum(groups)), "generator": generator}
    return Dimensions(groups, channels[-1], side, side, exemplars, trees, early)


def _most(budget: Budget, sizes: Sequence[int], codec: str, side: int) -> int | None:
    """Return a number of exemplars per class that ``budget`` cannot exceed; None: no limit.

    ``sizes`` are the images of each class: what small classes leave is for the large ones.
    """
    if budget.bytes is None:
        return most_per_class(budget, len(sizes), codec, (side, side))
    total = most_per_class(budget, 1, codec, (side, side))
    counts = range(1, max(sizes) + 1)
    return bisect.bisect_right(counts, total, key=lambda n: sum(min(n, size) for size in sizes))


def _candidates(ctx: Context) -> tuple[ImageSet, Tensor]:
    """Return the new images, after the kept ones of updated classes, and their rows.

    Rows count all kept images first, then the new ones.
    """
    new, kept = ctx.sets["new"], ctx.sets["kept"]
    fresh = torch.arange(len(kept), len(kept) + len(new))
    again = torch.isin(kept.labels.cpu(), torch.tensor(ctx.classes.updated, dtype=torch.int64))
    if not again.any():
        return new, fresh
    rows = torch.nonzero(again)[:, 0]
    return concat([kept.subset(rows.to(kept.labels.device)), new]), torch.cat([rows, fresh])


def _ranked(ctx: Context, selection: Selection, most: int | None) -> dict[int, NDArray[np.int64]]:
    """Return for every class with new images the rows of its images, best first.

    At most ``most``; rows count all kept images first, then the new ones. Kept images of an
    updated class are ranked again beside its new ones, as they decode from storage.
    """
    images, origin = _candidates(ctx)
    classes = ctx.classes
    labels = images.labels.cpu()
    features = None if selection.everything else ctx.features(images).cpu()
    ranked = {}
    for label in (*classes.updated, *range(classes.old, classes.seen)):
        rows = torch.nonzero(labels == label)[:, 0]
        if features is not None:
            # At least one, so that a budget for none is refused with the figure that would do.
            wanted = len(rows) if most is None else min(len(rows), max(1, most))
            parts = _parts(ctx, selection, rows, origin)
            generator = ctx.stream(f"rank-{label}")
            ranks = [part[selection.rank(features[part], wanted, generator)] for part in parts]
            rows = interleave(ranks, [len(part) for part in parts])[:wanted]
        ranked[label] = origin[rows].numpy()
    return ranked


def _parts(ctx: Context, selection: Selection, rows: Tensor, origin: Tensor) -> list[Tensor]:
    """Return the rows of a class in the parts that are ranked apart."""
    name = selection.apart
    if name is None:
        return [rows]
    kept = ctx.kept.read(name) if name in ctx.kept else np.zeros(len(ctx.sets["kept"]), bool)
    flags = torch.from_numpy(np.concatenate([kept, ctx.columns[name]]))[origin[rows]]
    return [rows[~flags], rows[flags]]


def _sizes(ctx: Context) -> list[int]:
    """Return how many images of every class there are to choose from, kept and new."""
    labels = torch.cat([ctx.sets["kept"].labels.cpu(), ctx.sets["new"].labels.cpu()])
    sizes: list[int] = torch.bincount(labels, minlength=ctx.classes.seen).tolist()
    return sizes


class _Pictures:
    """The images of a set as they are stored, ``side`` pixels wide.

    They are brought into host memory one by one: few of them are chosen.
    """

    def __init__(self, images: ImageSet, side: int) -> None:
        self._pixels = images.pixels
        self.shape = (len(images), side, side, 3)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        at = torch.tensor([row], device=self._pixels.device)
        image: NDArray[np.uint8] = self._pixels.index_select(0, at)[0].cpu().numpy()
        return fit_square(image, self.shape[1])


def stored_side(images: Field, decoded: int) -> int:
    """Return the side in pixels of a stored exemplar; the declaration may leave it as decoded."""
    side = images.shape[1]
    return side if isinstance(side, int) else decoded


def store_exemplars(
    ctx: Context, selection: Selection, budget: Budget, paths: Sequence[Path] | None
) -> int:
    """Store exemplars of old and new classes and return their number per class.

    ``ctx.sets["exemplars"]`` is then what decodes from storage.

    Raises:
        BudgetError: not one exemplar per class fits.
    """
    side, images = ctx.sets["new"].pixels.shape[1], ctx.keeps.field(IMAGES)
    stored = stored_side(images, side)
    pixels = _Pictures(ctx.sets["new"], stored)
    most = _most(budget, _sizes(ctx), images.codec, stored)
    ranked, kept, classes = _ranked(ctx, selection, most), len(ctx.sets["kept"]), ctx.classes
    count = build_exemplars(
        ctx.kept, ctx.keeps, pixels,
        [ranked[label] - kept for label in range(classes.old, classes.seen)], budget, paths=paths,
        updated={label: ranked[label] for label in classes.updated},
        dimensions=dimensions(ctx.net.spec, ctx.classes.groups, side, size=ctx.preprocess.size),
        values=ctx.columns,
    )  # fmt: skip
    ctx.sets["exemplars"] = exemplar_images(ctx.keeps, side).to(ctx.device)
    return count


def exemplar_images(store: Store, side: int) -> ImageSet:
    """Return the exemplars of a store as they decode from its bytes; labels by class order.

    Those that are stored smaller are enlarged to ``side`` pixels: training changes them as it
    changes new images, with the same margin around the crop.

    Raises:
        DataError: an image that is kept by reference is gone or changed.
    """
    counts = torch.from_numpy(store.read(COUNTS).astype("int64"))
    labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    stored = store.read(IMAGES)
    if stored.shape[1] == side:
        return ImageSet(torch.from_numpy(stored), labels)
    pixels = np.empty((len(stored), side, side, 3), np.uint8)
    for row, image in enumerate(stored):
        pixels[row] = fit_square(image, side)
    return ImageSet(torch.from_numpy(pixels), labels)
