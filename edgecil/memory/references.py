"""Images that stay where they are: a path and a SHA-256 for each, and no copy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgecil.errors import DataError
from edgecil.memory.codec import Array, CodecError, Parts, Size, Specs, join_blob, split_blob

_DIGEST = 32
_LONGEST_PATH = 512  # bytes; plans of joint training count with it


class Reference:
    """Codec of images kept by reference: ``encode`` takes paths, ``decode`` reads the files."""

    name = "reference"
    exact = False
    lossless = True

    def encode(self, array: Array) -> Parts:
        raise ValueError("references are made of paths: use encode_item and join")

    def decode(self, parts: Parts) -> Array:
        size, items = self.size(parts), split_blob(parts)
        images = np.empty((len(items), *size, 3), np.uint8)
        for row, item in enumerate(items):
            images[row] = _read(item, size)
        return images

    def bound(self, dtype: str, shape: tuple[int, ...]) -> Specs:
        return self.joined(shape[0], shape[0] * (_DIGEST + _LONGEST_PATH), (shape[1], shape[2]))

    def least(self, dtype: str, shape: tuple[int, ...]) -> Specs:
        return self.joined(shape[0], shape[0] * (_DIGEST + 2), (shape[1], shape[2]))

    def encode_item(self, source: Any) -> bytes:
        """Return the SHA-256 and the absolute path of a file.

        Raises:
            DataError: the file cannot be read, or its path is too long.
        """
        path = os.path.abspath(source)
        name = os.fsencode(path)
        if len(name) > _LONGEST_PATH:
            raise DataError(f"{path}: longer than {_LONGEST_PATH} bytes, cannot be kept")
        try:
            return hashlib.sha256(Path(path).read_bytes()).digest() + name
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None

    def join(self, items: Sequence[bytes], size: Size) -> Parts:
        return join_blob(items, "U16") | {"size": np.array(size, np.uint16)}

    def split(self, parts: Parts) -> list[bytes]:
        return split_blob(parts)

    def size(self, parts: Parts) -> Size:
        if "size" not in parts or parts["size"].shape != (2,):
            raise CodecError("part 'size' is missing")
        height, width = parts["size"].tolist()
        return height, width

    def joined(self, count: int, item_bytes: int, size: Size) -> Specs:
        return {"": ("U8", (item_bytes,)), "lengths": ("U16", (count,)), "size": ("U16", (2,))}


def _read(item: bytes, size: Size) -> Array:
    """Return the square image of a reference, as it was when it was learned.

    Raises:
        DataError: the file is gone or has changed.
    """
    from edgecil_runtime.images import fit_square, read_image

    path = os.fsdecode(item[_DIGEST:])
    hint = "put the file back, or continue with a method that needs no old data, such as lwm"
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: needed again, but {error.strerror}", hint=hint) from None
    if hashlib.sha256(data).digest() != item[:_DIGEST]:
        raise DataError(f"{path}: changed since it was learned", hint=hint)
    image: Array = fit_square(read_image(path), size[0])
    return image
