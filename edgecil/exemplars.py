"""How images that are kept to be trained on again get into the store, within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, chain
from os import PathLike
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgecil.errors import AdoptError, DataError
from edgecil.memory import codecs
from edgecil.memory.budget import Budget, count_for
from edgecil.memory.codec import Array, ItemCodec, Size
from edgecil.memory.fields import COUNTS, IMAGES, Dimensions, Field, columns
from edgecil.memory.plan import entry, field_specs, metadata
from edgecil.memory.store import Store
from edgecil_runtime import container
from edgecil_runtime.images import fit_square

_MOST_PER_CLASS = 65535  # counts are uint16


class Pictures(Protocol):
    """Images ``(N, R, R, 3)`` that are looked at one by one: an array is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N, R, R, 3)``."""

    def __getitem__(self, row: Any, /) -> Any:
        """Return an image uint8 ``(R, R, 3)``."""


class _Ranked:
    """The images of one class, best first, encoded when first asked for; its entries are sizes."""

    def __init__(self, count: int, encode: Callable[[int], bytes]) -> None:
        self._count, self._encode = count, encode
        self._items: list[bytes] = []

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rank: int) -> int:
        return len(self.items(rank + 1)[rank])

    def items(self, count: int) -> list[bytes]:
        """Return the encoded items of the best ``count`` images, or of all there are."""
        for rank in range(len(self._items), min(count, self._count)):
            self._items.append(self._encode(rank))
        return self._items[:count]


def _old_classes(
    old: Store, codec: ItemCodec, size: Size, changed: Mapping[int, Array]
) -> list[_Ranked]:
    """Return the exemplars of old classes: their stored bytes where codec and size are equal."""
    if IMAGES not in old:
        return []
    if codec.name == "reference" != old.field(IMAGES).codec:
        raise AdoptError("only copies of old images are kept, and joint training needs their files")
    before = old.item_size(IMAGES)
    if min(before) < min(size):
        raise ValueError(f"exemplars are {before} pixels and cannot be enlarged to {size}")
    if old.field(IMAGES).codec == codec.name and before == size:
        items = old.items(IMAGES)
        encoded: Callable[[int], bytes] = items.__getitem__
    else:
        pixels = old.read(IMAGES)

        def encoded(row: int) -> bytes:
            return codec.encode_item(fit_square(pixels[row], size[0]))

    def item(row: int) -> bytes:
        if row in changed:
            return codec.encode_item(fit_square(changed[row], size[0]))
        return encoded(row)

    counts = old.read(COUNTS).tolist()
    starts = accumulate(counts, initial=0)
    return [
        _Ranked(n, lambda rank, start=start: item(start + rank))  # type: ignore[misc]
        for n, start in zip(counts, starts, strict=False)
    ]


def _ranked_again(
    before: _Ranked, start: int, total: int, rows: NDArray[np.int64], encode: Callable[[int], bytes]
) -> _Ranked:
    """Return kept and new images of an old class in a new order, the kept ones as ``before``.

    ``rows`` count the ``total`` kept images first, of which those of the class begin at
    ``start``, then the new ones, which ``encode`` encodes.
    """

    def item(rank: int) -> bytes:
        row = int(rows[rank])
        return before.items(row - start + 1)[row - start] if row < total else encode(row - total)

    return _Ranked(len(rows), item)


def _file_size(
    fields: Sequence[Field], codec: ItemCodec, size: Size, dimensions: Dimensions | None
) -> Callable[[Sequence[int], int], int]:
    """Return the function (counts per class, item bytes) -> bytes of the kept-memory file."""
    kept = [f for f in fields if f.scope == "kept"]
    beside = [f.name for f in columns(tuple(kept))]
    others = [f for f in kept if f.name not in (IMAGES, COUNTS, *beside)]
    if others and dimensions is None:
        raise ValueError(f"to budget for {[f.name for f in others]} their dimensions are needed")
    specs: dict[str, container.Spec] = {}
    for field in others:
        specs |= field_specs(field, dimensions)  # type: ignore[arg-type]
    names = metadata(kept)

    def file_bytes(counts: Sequence[int], item_bytes: int) -> int:
        total = sum(counts)
        images = codec.joined(total, item_bytes, size)
        return container.layout(
            specs
            | {entry(IMAGES, None, part): spec for part, spec in images.items()}
            | {COUNTS: ("U16", (len(counts),))}
            | {f.name: (f.dtype, (total, *map(int, f.axes[1:]))) for f in kept if f.name in beside},
            names,
        ).total_bytes

    return file_bytes


def least_bytes(
    old: Store,
    fields: Sequence[Field],
    size: Size,
    rows: Mapping[int, Sequence[int]],
    encode: Callable[[int], bytes],
    limit: int,
    dimensions: Dimensions | None = None,
) -> int:
    """Return the bytes of the smallest kept-memory file with one exemplar of every class.

    ``rows`` are the new images of each class that has some, and ``encode(row)`` stores one.
    Which of them is ranked best is not known yet: it could be the smallest, or for a class that
    is known too one that is kept; of other old classes it is the first that is kept. Images are
    encoded only until ``limit`` is kept: the result is then at most ``limit``, and may not be
    the smallest.
    """
    (images,) = (f for f in fields if f.name == IMAGES)
    codec = codecs.item_codec(images.codec)
    file_bytes = _file_size(fields, codec, size, dimensions)
    least: dict[int, int] = {}
    for label, of_class in enumerate(_old_classes(old, codec, size, {})):
        items = of_class.items(len(of_class) if label in rows else 1)
        if items:
            least[label] = min(map(len, items))
    classes = 1 + max([*least, *rows], default=-1)
    waiting = {label: iter(of_class) for label, of_class in rows.items()}

    def total() -> int:
        counts = [int(label in least) for label in range(classes)]
        return file_bytes(counts, sum(least.values()))

    while waiting and (rows.keys() - least.keys() or total() > limit):
        for label, left in list(waiting.items()):
            row = next(left, None)
            if row is None:
                del waiting[label]
            else:
                item = len(encode(row))
                least[label] = min(item, least.get(label, item))
    return total()


def _prefixes(values: Array, sizes: Sequence[int], counts: Sequence[int]) -> list[Array]:
    """Return the first rows of every class of values that lie class after class."""
    starts = accumulate(sizes, initial=0)
    return [values[a : a + n] for a, n in zip(starts, counts, strict=False)]


def _blank(count: int, like: Array) -> Array:
    return np.zeros((count, *like.shape[1:]), like.dtype)


def _write_columns(
    old: Store, new: Store, ranked: Sequence[NDArray[np.int64]], counts: Sequence[int],
    values: Mapping[str, Array], updated: Mapping[int, NDArray[np.int64]],
) -> None:  # fmt: skip
    before = old.read(COUNTS).tolist() if COUNTS in old else []
    for field in columns(new.fields):
        if field.name not in values:
            raise ValueError(f"field {field.name}: no value for each new image was given")
        given = np.asarray(values[field.name])
        if field.name in old:
            kept = _prefixes(old.read(field.name), before, counts[: len(before)])
        else:  # adopted from a method without this column: nothing is known about them
            kept = [_blank(n, given) for n in counts[: len(before)]]
        for label, rows in updated.items():
            whole = old.read(field.name) if field.name in old else _blank(sum(before), given)
            kept[label] = np.concatenate([whole, given])[rows[: counts[label]]]
        fresh = [given[rows[:n]] for rows, n in zip(ranked, counts[len(before) :], strict=True)]
        new.write(field.name, np.concatenate([*kept, *fresh]))


def build_exemplars(
    old: Store,
    new: Store,
    pixels: Pictures,
    ranked: Sequence[NDArray[np.int64]],
    budget: Budget,
    *,
    paths: Sequence[str | PathLike[str]] | None = None,
    dimensions: Dimensions | None = None,
    values: Mapping[str, Array] | None = None,
    updated: Mapping[int, NDArray[np.int64]] | None = None,
    changed: Mapping[int, Array] | None = None,
) -> int:
    """Write the exemplars of old and new classes to ``new`` and return their number per class.

    ``pixels`` are the new images ``(N, R, R, 3)``; ``ranked`` has for every new class its rows
    of them, best first. Every class keeps the same number, the largest that ``budget`` allows,
    or all it has; old classes keep a prefix of what ``old`` holds, byte for byte. New images
    are encoded one rank after another, no further than the budget reaches.

    ``paths`` of the new images are needed by the codec ``reference``, which takes no budget;
    ``dimensions`` when other kept fields share the file with a budget in bytes; ``values`` has
    for every column of the declaration one row per new image. ``updated`` has for every old
    class with new images its rows of the kept images followed by the new ones, best first; kept
    images stay byte for byte in their new order, too. ``changed`` has by their row those kept
    images ``(R, R, 3)`` that are stored anew.

    Raises:
        BudgetError: not one exemplar per class fits.
        DataError: a class has more than 65,535 exemplars, or a referenced file cannot be read.
        AdoptError: references are to be kept of images of which only copies are left.
    """
    codec = codecs.item_codec(new.field(IMAGES).codec)
    size = (pixels.shape[1], pixels.shape[2])
    sources: Any = pixels
    if codec.name == "reference":
        if paths is None or not budget.unlimited:
            raise ValueError("references need the paths of the new images, and take no budget")
        sources = paths

    def encode(row: int) -> bytes:
        return codec.encode_item(sources[row])

    fresh = [
        _Ranked(len(rows), lambda rank, rows=rows: encode(rows[rank]))  # type: ignore[misc]
        for rows in ranked
    ]
    lists = _old_classes(old, codec, size, changed or {})
    sizes = [len(of_class) for of_class in lists]
    for label, rows in (updated or {}).items():
        lists[label] = _ranked_again(lists[label], sum(sizes[:label]), sum(sizes), rows, encode)
    lists += fresh
    file_bytes: Callable[[Sequence[int], int], int] = lambda counts, item_bytes: 0  # noqa: E731
    if budget.bytes is not None:
        file_bytes = _file_size(new.fields, codec, size, dimensions)
    count = count_for(budget, lists, file_bytes)
    chosen = [of_class.items(count) for of_class in lists]
    counts = [len(items) for items in chosen]
    if max(counts, default=0) > _MOST_PER_CLASS:
        raise DataError(f"a class has {max(counts)} exemplars; at most {_MOST_PER_CLASS} are kept")
    new.write_items(IMAGES, list(chain.from_iterable(chosen)), size)
    new.write(COUNTS, np.array(counts, np.uint16))
    _write_columns(old, new, ranked, counts, values or {}, updated or {})
    return count
