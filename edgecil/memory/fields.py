"""The declaration of every byte that a method keeps between increments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Shape = tuple[int | str, ...]
"""Numbers and symbols: K exemplars, C classes so far, C_new, T increments, D features, H, W."""


@dataclass(frozen=True)
class Field:
    """One named thing that is kept.

    ``shape`` holds numbers and symbols, or names a tree of :class:`Dimensions` (such as
    ``"conv-weights"``) of which every array is stored. With ``per_increment`` there is one
    array for each increment, and ``C_new`` is that increment's. ``scope`` says whether the
    bytes are kept memory or part of the classifier itself.
    """

    name: str
    shape: Shape | str
    why: str
    dtype: str = "F32"
    codec: str = "raw"
    per_increment: bool = False
    scope: Literal["kept", "classifier"] = "kept"


@dataclass(frozen=True)
class Dimensions:
    """The values of the symbols at the end of an increment.

    ``increments`` lists how many classes each increment added, so that uneven ones are exact.
    """

    increments: tuple[int, ...]
    features: int
    height: int
    width: int
    exemplars: int = 0
    trees: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)

    def symbols(self, increment: int | None = None) -> dict[str, int]:
        """Return the value of every symbol; ``C_new`` is that of ``increment`` (from 0; last)."""
        index = len(self.increments) - 1 if increment is None else increment
        return {
            "K": self.exemplars, "C": sum(self.increments), "C_new": self.increments[index],
            "T": len(self.increments), "D": self.features, "H": self.height, "W": self.width,
        }  # fmt: skip
