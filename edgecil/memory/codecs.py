"""How arrays become stored bytes: raw, image files, or references to files elsewhere.

A codec is named in a field's declaration. ``encode`` gives the named parts that the file
holds, ``decode`` turns them back, and ``bound`` says before there is any data how large the
parts can become; ``exact`` when they always are. Item codecs store images one by one, so
that a ranked list can be cut to a budget, and carried over, without encoding anything again.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgecil.errors import UsageError
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


class Raw:
    """Arrays as they are; also images, three bytes per pixel."""

    name = "raw"
    exact = True

    def encode(self, array: Array) -> Parts:
        return {"": array}

    def decode(self, parts: Parts) -> Array:
        return np.array(_part(parts, ""))

    def bound(self, dtype: str, shape: tuple[int, ...]) -> Specs:
        return {"": (dtype, shape)}

    least = bound

    def encode_item(self, source: Any) -> bytes:
        return np.ascontiguousarray(source).tobytes()

    def join(self, items: Sequence[bytes], size: Size) -> Parts:
        pixels = np.frombuffer(b"".join(items), dtype=np.uint8)
        return {"": pixels.reshape(len(items), *size, 3)}

    def split(self, parts: Parts) -> list[bytes]:
        return [image.tobytes() for image in _part(parts, "")]

    def size(self, parts: Parts) -> Size:
        height, width = _part(parts, "").shape[1:3]
        return height, width

    def joined(self, count: int, item_bytes: int, size: Size) -> Specs:
        return {"": ("U8", (count, *size, 3))}


def _part(parts: Parts, name: str) -> Array:
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
    blob, lengths = _part(parts, ""), _part(parts, "lengths")
    stops = np.cumsum(lengths.astype(np.int64))
    if blob.ndim != 1 or lengths.ndim != 1 or int(stops[-1] if len(stops) else 0) != len(blob):
        raise CodecError(f"the lengths of {len(lengths)} items do not fill {blob.size} bytes")
    data = blob.tobytes()
    return [data[a:b] for a, b in itertools.pairwise([0, *stops.tolist()])]


def get(name: str) -> Codec:
    """Return the codec of a name: of images raw, png, webp-lossless, jpeg-1 to jpeg-100 and
    reference, of numbers raw, narrow and labels-0.1 to labels-0.9.

    Raises:
        UsageError: there is no such codec.
    """
    from edgecil.memory import compact, pictures, references

    if match := re.fullmatch(r"labels-(0\.\d+|\de-\d+)", name):
        return compact.Labels(float(match[1]))
    if match := re.fullmatch(r"jpeg-([1-9]\d?|100)", name):
        return pictures.jpeg(int(match[1]))
    makers: dict[str, Callable[[], Codec]] = {
        "raw": Raw,
        "png": pictures.png,
        "webp-lossless": pictures.webp_lossless,
        "reference": references.Reference,
        "narrow": compact.Narrow,
    }
    if name not in makers:
        known = ", ".join([*makers, "jpeg-NN with NN in 1..100"])
        raise UsageError(f"unknown codec {name!r}", hint=f"one of {known}")
    return makers[name]()


def item_codec(name: str) -> ItemCodec:
    """Return the codec of a name that stores images one by one.

    Raises:
        UsageError: there is no such codec, or it does not store images.
    """
    found = get(name)
    if not isinstance(found, ItemCodec):
        raise UsageError(f"codec {name!r} does not store images")
    return found
