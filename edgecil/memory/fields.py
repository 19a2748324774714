"""The declaration of every byte that a method keeps between increments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgecil_runtime import container

Shape = tuple[int | str, ...]
"""Numbers and symbols: K exemplars, C classes so far, C_new, T increments, D features, H, W."""

Tree = Mapping[str, tuple[int, ...]]
"""Shapes of named arrays of one dtype, such as every convolution weight of a network."""

Sized = Callable[[int], Tree]
"""From the side of the network's input in pixels to the shapes of something that is built for it.
Two declarations are the same when these compare equal: a function, or a frozen dataclass."""

IMAGES, COUNTS = "exemplars.images", "exemplars.counts"


@dataclass(frozen=True)
class Field:
    """One named thing that is kept.

    ``shape`` holds numbers and symbols, or it is a tree of which every array is stored: the
    name of one of :class:`Dimensions` (such as ``"conv-weights"``), or for a module of the
    method's own what gives its shapes (:data:`Sized`). With ``per_increment`` there is one
    array (or tree) for each increment, and ``C_new``, ``C`` and ``T`` are as of that increment;
    ``first`` drops those before it, as far as there are later ones, and ``newest`` False the
    newest, where the classifier holds it.
    ``scope`` says whether the bytes are kept memory or part of the classifier itself.

    Raises:
        ValueError: the dtype is not one of the container's, or the name has ``@`` or ``:``.
    """

    name: str
    shape: Shape | str | Sized
    why: str
    dtype: str = "F32"
    codec: str = "raw"
    per_increment: bool = False
    first: int = 1
    newest: bool = True
    scope: Literal["kept", "classifier"] = "kept"

    def __post_init__(self) -> None:
        # Both separate a field from its increment and part in the names of the file.
        if not self.name or {"@", ":"} & set(self.name):
            raise ValueError(f"field name {self.name!r} must be text without '@' and ':'")
        try:
            container.layout({self.name: (self.dtype, (1,))})
        except KeyError:
            raise ValueError(f"field {self.name}: unknown dtype {self.dtype!r}") from None

    @property
    def is_tree(self) -> bool:
        """Whether it stores the arrays of a tree, not one."""
        return not isinstance(self.shape, tuple)

    @property
    def axes(self) -> Shape:
        """The shape of its array; () for a tree."""
        return self.shape if isinstance(self.shape, tuple) else ()

    def increments(self, count: int) -> Sequence[int | None]:
        """Return the increments it is kept for after ``count`` of them; [None] when for all."""
        if not self.per_increment:
            return [None]
        return range(min(self.first, count), count + self.newest)


@dataclass(frozen=True)
class Dimensions:
    """The values of the symbols at the end of an increment.

    ``increments`` lists how many classes each increment added, so that uneven ones are exact.
    ``height`` and ``width`` are those of a stored exemplar, in pixels. ``extra`` holds symbols
    that only one method uses. ``size`` is the side of the network's input in pixels, where it
    is another than ``height``.
    """

    increments: tuple[int, ...]
    features: int
    height: int
    width: int
    exemplars: int = 0
    trees: Mapping[str, Tree] = field(default_factory=dict)
    extra: Mapping[str, int] = field(default_factory=dict)
    size: int | None = None

    def symbols(self, increment: int | None = None) -> dict[str, int]:
        """Return the value of every symbol as of ``increment`` (1 is the base; None: the last)."""
        so_far = self.increments if increment is None else self.increments[:increment]
        return {
            "K": self.exemplars, "C": sum(so_far), "C_new": so_far[-1] if so_far else 0,
            "T": len(so_far), "D": self.features, "H": self.height, "W": self.width,
            **self.extra,
        }  # fmt: skip

    def shapes(self, item: Field, increment: int | None = None) -> tuple[int, ...] | Tree:
        """Return the numbers of a field's shape, or its tree.

        Raises:
            ValueError: the shape has an unknown symbol, or names an unknown tree.
        """
        if callable(item.shape):
            return item.shape(self.height if self.size is None else self.size)
        if isinstance(item.shape, str):
            if item.shape not in self.trees:
                known = ", ".join(sorted(self.trees)) or "none"
                raise ValueError(f"field {item.name}: no tree {item.shape!r} (known: {known})")
            return self.trees[item.shape]
        known_symbols = self.symbols(increment)
        for entry in item.shape:
            if isinstance(entry, str) and entry not in known_symbols:
                known = ", ".join(sorted(known_symbols))
                raise ValueError(f"field {item.name}: unknown symbol {entry!r} (known: {known})")
        return tuple(e if isinstance(e, int) else known_symbols[e] for e in item.shape)


def exemplar_fields(codec: str = "raw") -> tuple[Field, ...]:
    """Return the declaration of exemplars: images in ranked order, and their number per class.

    Images lie class after class in order of introduction, best first within a class, so that
    shrinking keeps prefixes. A method that knows more about every exemplar (BiC's held-out
    flag) adds a column: a raw field whose shape begins with ``K``; it is shrunk alongside.
    """
    return (
        Field(IMAGES, ("K", "H", "W", 3), "exemplars to train on again", "U8", codec),
        Field(COUNTS, ("C",), "how many of the exemplars belong to each class", "U16"),
    )


def columns(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """Return the fields that hold one row per exemplar beside its image.

    Raises:
        ValueError: a column has a codec: its rows could not be shortened.
    """
    found = tuple(f for f in fields if f.name != IMAGES and f.axes[:1] == ("K",))
    for item in found:
        if item.codec != "raw" or item.per_increment:
            raise ValueError(f"field {item.name}: a column of exemplars must be raw, and one array")
    return found


def holds_images(fields: tuple[Field, ...]) -> bool:
    """Return whether a method with these fields can reach old images: False is exemplar-free."""
    return any(f.name == IMAGES or "K" in f.axes for f in fields)
