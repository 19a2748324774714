"""Images as compressed files, without the bytes that all files of one size share.

A JPEG of 32 x 32 pixels spends 623 bytes on tables and headers that are the same for every
image of that size and quality, and about as many on the image. They are stored once.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from edgecil.memory.codec import (
    Array,
    CodecError,
    Parts,
    Size,
    Specs,
    join_blob,
    length_dtype,
    split_blob,
)
from edgecil_runtime.container import Spec


@dataclass(frozen=True)
class Pictures:
    """Codec of uint8 images ``(K, H, W, 3)`` as compressed files of one format.

    ``head`` finds the length of the shared beginning of a file; ``tail`` is the shared end.
    ``margin(raw bytes)`` is a proven bound of an item, or None: then it is measured on noise.
    """

    name: str
    format: str
    options: tuple[tuple[str, Any], ...]
    head: Callable[[bytes], int]
    tail: bytes = b""
    margin: Callable[[int, int], int] | None = None
    exact: bool = False
    lossless: bool = True

    def encode(self, array: Array) -> Parts:
        return self.join([self.encode_item(a) for a in array], (array.shape[1], array.shape[2]))

    def decode(self, parts: Parts) -> Array:
        images = [self._open(parts, item) for item in split_blob(parts)]
        if any(image.shape != images[0].shape for image in images):
            raise CodecError("the images differ in size")
        return np.stack(images) if images else np.zeros((0, 0, 0, 3), np.uint8)

    def bound(self, dtype: str, shape: tuple[int, ...]) -> Specs:
        size = (shape[1], shape[2])
        return self.joined(shape[0], shape[0] * _largest(self, size), size)

    def least(self, dtype: str, shape: tuple[int, ...]) -> Specs:
        size = (shape[1], shape[2])
        return self.joined(shape[0], shape[0] * len(self.encode_item(_grey(size))), size)

    def encode_item(self, source: Any) -> bytes:
        data = self._file(np.asarray(source, dtype=np.uint8))
        return data[self.head(data) : len(data) - len(self.tail)]

    def join(self, items: Sequence[bytes], size: Size) -> Parts:
        parts = join_blob(items, length_dtype(_largest(self, size)))
        head = _head(self, size)
        return parts | ({"head": np.frombuffer(head, dtype=np.uint8)} if head else {})

    def split(self, parts: Parts) -> list[bytes]:
        return split_blob(parts)

    def size(self, parts: Parts) -> Size:
        items = split_blob(parts)
        height, width = self._open(parts, items[0]).shape[:2] if items else (0, 0)
        return height, width

    def joined(self, count: int, item_bytes: int, size: Size) -> Specs:
        specs: dict[str, Spec] = {
            "": ("U8", (item_bytes,)),
            "lengths": (length_dtype(_largest(self, size)), (count,)),
        }
        head = _head(self, size)
        return specs | ({"head": ("U8", (len(head),))} if head else {})

    def _file(self, image: Array) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, self.format, **dict(self.options))
        return buffer.getvalue()

    def _open(self, parts: Parts, item: bytes) -> Array:
        head = parts["head"].tobytes() if "head" in parts else b""
        data = head + item + self.tail
        try:
            with Image.open(io.BytesIO(data), formats=[self.format]) as image:
                return np.array(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise CodecError(f"a stored {self.format} image does not decode: {error}") from None


def _grey(size: Size) -> Array:
    return np.full((*size, 3), 128, np.uint8)


@cache
def _head(codec: Pictures, size: Size) -> bytes:
    data = codec._file(_grey(size))
    return data[: codec.head(data)]


@cache
def _largest(codec: Pictures, size: Size) -> int:
    """Return a bound in bytes of one encoded item.

    Without a proof (JPEG, WebP) it is one and a half times what noise takes, plus 256 bytes.
    Noise is what both do worst. Samples at 0 or 255 have the largest energy around mid-grey
    that there is, spread evenly over all coefficients, and code lengths grow with the logarithm
    of a coefficient; in grey all of it is luminance, which coarse tables keep best. Uniform
    noise has the largest entropy of samples: no literal can be predicted or repeated.
    """
    if codec.margin is not None:
        return codec.margin(*size)
    random = np.random.Generator(np.random.PCG64(0))
    extremes = random.integers(0, 2, (*size, 3), dtype=np.uint8) * np.uint8(255)
    uniform = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    grey = np.repeat(extremes[..., :1], 3, axis=2)
    return 256 + 3 * max(len(codec.encode_item(i)) for i in (extremes, uniform, grey)) // 2


def _jpeg_head(data: bytes) -> int:
    """Return where the entropy-coded data begin: after the start-of-scan segment (ITU T.81 B.1)."""
    at = 2
    while True:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        at += 2 + length
        if marker == 0xDA:
            return at


def _png_bound(height: int, width: int) -> int:
    """Return a bound of a PNG beyond its header: zlib-ng's compressBound, and chunk frames.

    Its largest case is nine bits per byte (the quick strategy's fixed codes); zlib itself
    stays below a thousandth. Pillow writes a chunk (12 bytes) at least every 64 KiB.
    """
    filtered = height * (3 * width + 1)
    deflated = filtered + filtered // 8 + 64
    return deflated + 12 * (deflated // 65536 + 2)


_PNG_HEAD = 33  # signature and IHDR
_PNG_TAIL = b"\x00\x00\x00\x00IEND\xaeB`\x82"


@cache
def png() -> Pictures:
    """Return the codec ``png``: lossless."""
    options = (("compress_level", 9),)
    return Pictures("png", "PNG", options, lambda data: _PNG_HEAD, _PNG_TAIL, _png_bound)


@cache
def webp_lossless() -> Pictures:
    """Return the codec ``webp-lossless``.

    Method 4 because at 32 x 32 the slower ones are larger: 1777 bytes per CIFAR image in
    1.5 ms against 1810 bytes in 43 ms at full effort.
    """
    options = (("lossless", True), ("quality", 80), ("method", 4), ("exact", True))
    return Pictures("webp-lossless", "WEBP", options, lambda data: 0)


@cache
def jpeg(quality: int) -> Pictures:
    """Return the codec ``jpeg-<quality>``: baseline, 4:2:0, the standard's Huffman tables."""
    options: Mapping[str, Any] = {
        "quality": quality, "subsampling": 2, "optimize": False, "progressive": False,
    }  # fmt: skip
    return Pictures(
        f"jpeg-{quality}", "JPEG", tuple(options.items()), _jpeg_head, b"\xff\xd9", lossless=False
    )
