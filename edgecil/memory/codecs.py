"""The codecs by name: a field's declaration names one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgecil.errors import UsageError
from edgecil.memory import compact, pictures, references
from edgecil.memory.codec import Array, Codec, ItemCodec, Parts, Size, Specs, part


class Raw:
    """Arrays as they are; also images, three bytes per pixel."""

    name = "raw"
    exact = True
    lossless = True

    def encode(self, array: Array) -> Parts:
        return {"": array}

    def decode(self, parts: Parts) -> Array:
        return np.array(part(parts, ""))

    def bound(self, dtype: str, shape: tuple[int, ...]) -> Specs:
        return {"": (dtype, shape)}

    least = bound

    def encode_item(self, source: Any) -> bytes:
        return np.ascontiguousarray(source).tobytes()

    def join(self, items: Sequence[bytes], size: Size) -> Parts:
        pixels = np.frombuffer(b"".join(items), dtype=np.uint8)
        return {"": pixels.reshape(len(items), *size, 3)}

    def split(self, parts: Parts) -> list[bytes]:
        return [image.tobytes() for image in part(parts, "")]

    def size(self, parts: Parts) -> Size:
        height, width = part(parts, "").shape[1:3]
        return height, width

    def joined(self, count: int, item_bytes: int, size: Size) -> Specs:
        return {"": ("U8", (count, *size, 3))}


_OF_IMAGES = "there are raw, png, webp-lossless and jpeg-1 to jpeg-100"
"""What a user can choose of; the others are declared by methods."""


def get(name: str) -> Codec:
    """Return the codec of a name: of images raw, png, webp-lossless, jpeg-1 to jpeg-100 and
    reference, of numbers raw, narrow and labels-0.1 to labels-0.9.

    Raises:
        UsageError: there is no such codec.
    """
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
        raise UsageError(f"unknown codec {name!r}", hint=_OF_IMAGES)
    return makers[name]()


def item_codec(name: str) -> ItemCodec:
    """Return the codec of a name that stores images one by one.

    Raises:
        UsageError: there is no such codec, or it does not store images.
    """
    found = get(name)
    if not isinstance(found, ItemCodec):
        raise UsageError(f"codec {name!r} does not store images", hint=_OF_IMAGES)
    return found
