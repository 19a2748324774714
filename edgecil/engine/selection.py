"""Exemplars at the end of an increment: ranked, encoded within the budget, read back."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgecil.context import Candidates, Context
from edgecil.data.images import ImageSet, Pixels, concat
from edgecil.data.resident import require_host
from edgecil.exemplars import build_exemplars
from edgecil.memory import codecs
from edgecil.memory.budget import Budget, most_per_class
from edgecil.memory.fields import COUNTS, IMAGES, Dimensions, Field, columns
from edgecil.memory.store import Store
from edgecil.method import Selection
from edgecil.nets.build import shapes, stage_channels
from edgecil.nets.net import NetSpec
from edgecil.rankings import BLIND, interleave
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
    trees = shapes(spec, sum(groups))
    return Dimensions(groups, channels[-1], side, side, exemplars, trees, early, size)


def _most(budget: Budget, sizes: Sequence[int], codec: str, side: int) -> int | None:
    """Return a number of exemplars per class that ``budget`` cannot exceed; None: no limit.

    ``sizes`` are the images of each class: what small classes leave is for the large ones.
    """
    if budget.bytes is None:
        return most_per_class(budget, len(sizes), codec, (side, side))
    total = most_per_class(budget, 1, codec, (side, side))
    counts = range(1, max(sizes) + 1)
    return bisect.bisect_right(counts, total, key=lambda n: sum(min(n, size) for size in sizes))


def _choice(ctx: Context) -> tuple[ImageSet, Tensor]:
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


def _ranked(ctx: Context, selection: Selection, most: int | None) -> Candidates:
    """Return for every class with new images the rows of its images, best first.

    At most ``most``; rows count all kept images first, then the new ones. Kept images of an
    updated class are ranked again beside its new ones, as they decode from storage.
    """
    images, origin = _choice(ctx)
    classes = ctx.classes
    labels = images.labels.cpu()
    features = None
    if not selection.everything:
        blind = selection.rank in BLIND
        features = torch.zeros(len(images), 0) if blind else ctx.features(images).cpu()
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
        ranked[label] = origin[rows]
    return Candidates(ranked)


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

    They are brought into host memory one by one: few of them are chosen. ``changed`` has by
    their row images that take the place of others.
    """

    def __init__(self, images: ImageSet, side: int, changed: Mapping[int, Tensor]) -> None:
        self._pixels, self._changed = images.pixels, changed
        self.shape = (len(images), side, side, 3)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        image = self._changed.get(int(row))
        if image is None:
            return stored_image(self._pixels, row, self.shape[1])
        return fit_square(image.cpu().numpy(), self.shape[1])


def stored_image(pixels: Pixels, row: int, side: int) -> NDArray[np.uint8]:
    """Return an image as it is stored, uint8 ``(side, side, 3)``."""
    at = torch.tensor([row], device=pixels.device)
    return fit_square(pixels.index_select(0, at)[0].cpu().numpy(), side)


def stored_side(images: Field, decoded: int) -> int:
    """Return the side in pixels of a stored exemplar; the declaration may leave it as decoded."""
    side = images.axes[1]
    return side if isinstance(side, int) else decoded


@dataclass(frozen=True)
class Memory:
    """The exemplars' part of what an increment will keep: :class:`edgecil.context.Shelf`."""

    ctx: Context
    selection: Selection
    budget: Budget
    new: ImageSet
    """The new images as they were given: what is stored is encoded once."""

    @property
    def side(self) -> int:
        """Side of a decoded image in pixels."""
        return int(self.ctx.sets["new"].pixels.shape[1])

    def ranked(self) -> Candidates:
        """Return what the selection ranks best, with the network as it is now."""
        images = self.ctx.keeps.field(IMAGES)
        stored = stored_side(images, self.side)
        most = _most(self.budget, _sizes(self.ctx), images.codec, stored)
        return _ranked(self.ctx, self.selection, most)

    def trial(self, candidates: Candidates) -> tuple[ImageSet, Mapping[str, NDArray[Any]]]:
        """Return what the budget takes of ``candidates``, and its columns, as they decode."""
        store = Store(self.ctx.keeps.fields)
        self.fill(store, candidates)
        names = [field.name for field in columns(store.fields)]
        images = exemplar_images(store, self.side).to(self.ctx.device)
        return images, {name: store.read(name) for name in names}

    def fill(
        self, store: Store, candidates: Candidates, paths: Sequence[Path] | None = None
    ) -> int:
        """Encode into ``store`` what the budget takes, and return the number per class."""
        ctx, classes = self.ctx, self.ctx.classes
        ranked = {label: rows.numpy() for label, rows in candidates.rows.items()}
        kept = ctx.sets["kept"]
        made = {r - len(kept): image for r, image in candidates.changed.items() if r >= len(kept)}
        pixels = _Pictures(self.new, stored_side(store.field(IMAGES), self.side), made)
        return build_exemplars(
            ctx.kept, store, pixels,
            [ranked[label] - len(kept) for label in range(classes.old, classes.seen)],
            self.budget, paths=paths,
            updated={label: ranked[label] for label in classes.updated},
            changed=_changed(kept, candidates.changed),
            dimensions=dimensions(
                ctx.net.spec, classes.groups, self.side, size=ctx.preprocess.size
            ),
            values=ctx.columns,
        )  # fmt: skip

    def keep(self, paths: Sequence[Path] | None) -> int:
        """Store exemplars of old and new classes and return their number per class.

        ``ctx.sets["exemplars"]`` is then what decodes from storage; ``paths`` are the files of
        the new images.

        Raises:
            BudgetError: not one exemplar per class fits.
        """
        ctx, chosen = self.ctx, self.selection.candidates
        given = self.ranked() if chosen is None else chosen(ctx)
        count = self.fill(ctx.keeps, given, paths)
        ctx.sets["exemplars"] = exemplar_images(ctx.keeps, self.side).to(ctx.device)
        return count


def _changed(kept: ImageSet, now: Mapping[int, Tensor]) -> dict[int, NDArray[np.uint8]]:
    """Return the kept images that are not as they were: a lossy codec should not be applied twice
    to one that is."""
    before = _Pictures(kept, int(kept.pixels.shape[1]), {})
    images = {row: image.cpu().numpy() for row, image in now.items() if row < len(kept)}
    return {r: image for r, image in images.items() if not np.array_equal(image, before[r])}


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


def seen_as_stored(images: ImageSet, store: Store) -> ImageSet:
    """Return images as they would come back from a store of exemplars.

    What a codec leaves in an image, or enlarging a smaller one, tells an old class from a new one
    where new images are seen as they are, and is easier to learn than the classes: so new
    images are trained on with the same traces (docs/exemplars.md: what it costs not to).

    Raises:
        DataError: there is no room for them beside those that were given.
    """
    codec, decoded = codecs.item_codec(store.field(IMAGES).codec), int(images.pixels.shape[1])
    height, width = store.item_size(IMAGES)
    if codec.lossless and height == decoded:
        return images
    if not images.on_disk:
        what = f"{len(images):,} new images, as they would come back from storage,"
        require_host(images.pixels.nbytes, what)

    def back(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        item = codec.encode_item(fit_square(image, height))
        found: NDArray[np.uint8] = codec.decode(codec.join([item], (height, width)))[0]
        return fit_square(found, decoded)

    return images.changed(back)
