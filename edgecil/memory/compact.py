"""Codecs of numbers: the labels that say which increment owns a weight, and short floats.

Labels are kept as one bit plane per increment: of the weights that nobody owned before, which
did increment k take? By the chain rule of entropy the planes together hold exactly the
information of the labels, and eight bits make a symbol, so that a Huffman code comes closer to
the entropy than one over the labels themselves would.
"""

from __future__ import annotations

import heapq
import math
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np

from edgecil.memory.codec import Array, Codec, CodecError, Parts, Specs

_BLOCK, _TABLE = 2**15 - 1, 200
"""Bytes that zlib at memory level 9 codes with one Huffman table, and more than one takes."""


def _huffman(data: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data) + coder.flush()


@cache
def huffman_bits(share: float) -> float:
    """Return the mean bits of a Huffman code for 8 independent bits that are 1 with ``share``."""
    heap = [(share**n * (1 - share) ** (8 - n)) for n in (v.bit_count() for v in range(256))]
    heapq.heapify(heap)
    total = 0.0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    return total


@dataclass(frozen=True)
class Labels:
    """Labels uint8 ``(N,)``: 0 for nobody, else the increment; each takes ``1 - left`` of the rest.

    The share is what the bound rests on: bits that are alike or lie together only make the
    planes smaller. A plane is stored packed where Huffman's code does not make it smaller.
    """

    left: float
    increments: int = 1
    exact = False

    @property
    def name(self) -> str:
        return f"labels-{self.left:g}"

    def after(self, increments: int) -> Codec:
        return Labels(self.left, increments)

    def encode(self, array: Array) -> Parts:
        planes, rest = [], array.ravel()
        for label in range(1, int(array.max(initial=0)) + 1):
            taken = rest == label
            packed = np.packbits(taken).tobytes()
            planes.append(min(_huffman(packed), packed, key=len))
            rest = rest[~taken]
        lengths = [array.size, *map(len, planes)]
        blob = np.frombuffer(b"".join(planes), dtype=np.uint8)
        return {"": blob, "lengths": np.array(lengths, dtype=np.uint32)}

    def decode(self, parts: Parts) -> Array:
        try:
            size, *lengths = parts["lengths"].tolist()
            blob = parts[""].tobytes()
        except (KeyError, ValueError):
            raise CodecError("the planes of the labels, or their lengths, are missing") from None
        if sum(lengths) != len(blob):
            raise CodecError(f"planes of {sum(lengths)} bytes do not fill {len(blob)}")
        labels, start = np.zeros(size, dtype=np.uint8), 0
        for label, length in enumerate(lengths, start=1):
            free = np.flatnonzero(labels == 0)
            bits = _plane(blob[start : start + length], len(free))
            labels[free[bits]] = label
            start += length
        return labels

    def bound(self, dtype: str, shape: tuple[int, ...]) -> Specs:
        share, total = 1 - self.left, 0
        for before in range(self.increments):
            # Shares are rounded in every layer: a few weights more or less.
            packed = math.ceil(math.prod(shape) * self.left**before / 8) + 64
            coded = math.ceil(packed * huffman_bits(share) / 8)
            total += min(packed, coded + _TABLE * math.ceil(packed / _BLOCK))
        return {"": ("U8", (total,)), "lengths": ("U32", (self.increments + 1,))}

    def least(self, dtype: str, shape: tuple[int, ...]) -> Specs:
        bound = self.bound(dtype, shape)
        return {**bound, "": ("U8", (bound[""][1][0] * 3 // 4,))}


def _plane(data: bytes, count: int) -> Array:
    """Return the bits bool ``(count,)`` of one plane."""
    packed = -(-count // 8)
    if len(data) != packed:
        coder = zlib.decompressobj(-15)
        try:
            data = coder.decompress(data, packed + 1)
        except zlib.error as error:
            raise CodecError(f"a plane does not decompress: {error}") from None
        if len(data) != packed or not coder.eof:
            raise CodecError(f"a plane of {len(data)} bytes is not one of {count} bits")
    return np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count).astype(bool)


class Narrow:
    """Floats without loss: two bytes each where all of them are float16 values, else four."""

    name = "narrow"
    exact = False

    def encode(self, array: Array) -> Parts:
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        return {"": half if np.array_equal(half.astype(array.dtype), array) else array}

    def decode(self, parts: Parts) -> Array:
        if "" not in parts:
            raise CodecError("part '' is missing")
        return np.array(parts[""], dtype=np.float32)

    def bound(self, dtype: str, shape: tuple[int, ...]) -> Specs:
        return {"": (dtype, shape)}

    def least(self, dtype: str, shape: tuple[int, ...]) -> Specs:
        return {"": ("F16", shape)}
