"""Counter-based random streams: what is drawn depends on what it is for, not on what came before.

A run that is resumed, or shared by several ranks, asks for the same stream by the same name
and sees the same numbers; nothing but the seed has to be stored.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Protocol

import torch

Counter = int | str


class Streams(Protocol):
    """A maker of streams whose first counters are already chosen."""

    def __call__(self, *counters: Counter) -> torch.Generator:
        """Return the stream of the chosen counters followed by ``counters``."""


def _encoded(counter: Counter) -> bytes:
    # Type and length go in, so that ("ab", "c"), ("a", "bc") and ("1",), (1,) differ.
    text = str(int(counter)) if isinstance(counter, int) else counter
    body = text.encode("utf-8", "surrogatepass")
    return b"%c%d:%b" % (b"i" if isinstance(counter, int) else b"s", len(body), body)


def stream_seed(seed: int, *counters: Counter) -> int:
    """Return 64 bits that depend on all arguments, equal in every process and on every machine."""
    digest = hashlib.blake2b(b"".join(map(_encoded, (seed, *counters))), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def stream(seed: int, *counters: Counter) -> torch.Generator:
    """Return a CPU generator that depends on the arguments alone, at its beginning.

    torch's CPU generator (a Mersenne twister) starts from the low 32 bits of its seed: two of
    10,000 streams are equal with a chance of about one percent, which costs an epoch that
    shuffles like another one and nothing else.
    """
    return torch.Generator("cpu").manual_seed(stream_seed(seed, *counters))


def streams(seed: int, *counters: Counter) -> Streams:
    """Return a maker of streams that all begin with the given counters.

    ``streams(7, "train")(3)`` is ``stream(7, "train", 3)``.
    """
    return functools.partial(stream, seed, *counters)
