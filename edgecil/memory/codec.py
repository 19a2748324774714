"""What a codec is: how arrays become stored parts, and come back.

``encode`` gives the named parts that the file holds, ``decode`` turns them back, and ``bound``
says before there is any data how large the parts can become; ``exact`` when they always are.
Item codecs store images one by one, so that a ranked list can be cut to a budget, and carried
over, without encoding anything again.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgecil_runtime.container import Spec

Array = NDArray[Any]
Parts = Mapping[str, Array]
"""Arrays of one encoded value by part; the main part is called ``""``."""
Specs = Mapping[str, Spec]
"""``(dtype name, shape)`` of every part."""
Size = tuple[int, int]
"""Height and width in pixels."""


class CodecError(ValueError):
    """The stored parts do not decode: they are damaged or of another codec."""


class Codec(Protocol):
    """Turns one array into named parts and back."""

    @property
    def name(self) -> str:
        """The name in declarations and in the file, such as ``"png"``."""
        ...

    @property
    def exact(self) -> bool:
        """True when the encoded parts are always as large as ``bound`` says."""
        ...

    def encode(self, array: Array) -> Parts:
        """Return the parts that stand for ``array``."""
        ...

    def decode(self, parts: Parts) -> Array:
        """Return the array that the parts stand for, writable.

        Raises:
            CodecError: the parts are damaged.
        """
        ...

    def bound(self, dtype: str, shape: tuple[int, ...]) -> Specs:
        """Return parts at least as large as any array of this dtype and shape encodes to."""
        ...

    def least(self, dtype: str, shape: tuple[int, ...]) -> Specs:
        """Return parts no larger than what hardly any array of this shape stays below."""
        ...


@runtime_checkable
class Growing(Codec, Protocol):
    """A codec whose bound depends on how many increments there were."""

    def after(self, increments: int) -> Codec:
        """Return the codec with the bound that holds after so many increments."""
        ...


@runtime_checkable
class ItemCodec(Codec, Protocol):
    """Encodes uint8 images ``(H, W, 3)`` one by one."""

    @property
    def lossless(self) -> bool:
        """True when an image decodes to what was encoded."""
        ...

    def encode_item(self, source: Any) -> bytes:
        """Return the bytes of one image (for ``reference``: of one path)."""
        ...

    def join(self, items: Sequence[bytes], size: Size) -> Parts:
        """Return the parts that hold encoded items, verbatim and in order."""
        ...

    def split(self, parts: Parts) -> list[bytes]:
        """Return the encoded items that the parts hold.

        Raises:
            CodecError: the parts are damaged.
        """
        ...

    def size(self, parts: Parts) -> Size:
        """Return height and width of the images in the parts; (0, 0) when there are none.

        Raises:
            CodecError: the parts are damaged.
        """
        ...

    def joined(self, count: int, item_bytes: int, size: Size) -> Specs:
        """Return the exact specs of ``join`` for ``count`` items of ``item_bytes`` in all."""
        ...


def part(parts: Parts, name: str) -> Array:
    """Return one of the parts.

    Raises:
        CodecError: it is missing.
    """
    try:
        return parts[name]
    except KeyError:
        raise CodecError(f"part {name!r} is missing") from None


def length_dtype(largest: int) -> str:
    """Return the dtype name that holds item lengths up to ``largest`` bytes."""
    return "U16" if largest < 2**16 else "U32"


def join_blob(items: Sequence[bytes], dtype: str) -> dict[str, Array]:
    """Return one array of bytes and the length of every item in it.

    Raises:
        ValueError: an item is longer than its dtype can say.
    """
    limit = 2**16 if dtype == "U16" else 2**32
    if any(len(item) >= limit for item in items):
        raise ValueError(f"an item of {max(map(len, items))} bytes does not fit {dtype} lengths")
    lengths = np.array([len(item) for item in items], np.uint16 if dtype == "U16" else np.uint32)
    return {"": np.frombuffer(b"".join(items), dtype=np.uint8), "lengths": lengths}


def split_blob(parts: Parts) -> list[bytes]:
    """Return the items of :func:`join_blob`.

    Raises:
        CodecError: the lengths do not add up to the bytes there are.
    """
    blob, lengths = part(parts, ""), part(parts, "lengths")
    stops = np.cumsum(lengths.astype(np.int64))
    if blob.ndim != 1 or lengths.ndim != 1 or int(stops[-1] if len(stops) else 0) != len(blob):
        raise CodecError(f"the lengths of {len(lengths)} items do not fill {blob.size} bytes")
    data = blob.tobytes()
    return [data[a:b] for a, b in itertools.pairwise([0, *stops.tolist()])]
