"""Which onnxruntime loads which models, and which releases must not be used.

onnxruntime has no function that tells its limits; a model beyond them fails with a message that
does not say which side to change.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Optional, Tuple

OLDEST = "1.16"

Version = Tuple[int, ...]


class Limits(NamedTuple):
    """The highest IR version and opset that an onnxruntime loads."""

    ir: int
    opset: int


# From the release on; measured by tests/onnxruntime_matrix/limits.py up to 1.31.
_LIMITS = (
    ((1, 16), Limits(9, 19)),
    ((1, 17), Limits(9, 20)),
    ((1, 18), Limits(10, 21)),
    ((1, 21), Limits(10, 22)),
    ((1, 23), Limits(11, 23)),
    ((1, 24), Limits(13, 25)),
    ((1, 25), Limits(13, 26)),
)

# (release, machine, what is wrong)
_DENIED = (
    (
        (1, 21, 0),
        "aarch64",
        "stops with an illegal instruction on cores without Armv8.2, such as those of a "
        "Raspberry Pi 4 (onnxruntime issue 23957)",
    ),
)


def parse_version(text: str) -> Version:
    """Return up to three numbers of a version such as ``"1.21.0"`` or ``"1.32.0.dev1"``."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def limits_of(version: str) -> Optional[Limits]:
    """Return the limits of an onnxruntime; None for one that is too old for this runtime."""
    known = [limits for first, limits in _LIMITS if parse_version(version) >= first]
    return known[-1] if known else None


def oldest_for(ir: int, opset: int) -> Optional[str]:
    """Return the oldest onnxruntime that loads such a model; None when none is known to."""
    for first, limits in _LIMITS:
        if ir <= limits.ir and opset <= limits.opset:
            return ".".join(map(str, first))
    return None


def denied(version: str, machine: str) -> Optional[str]:
    """Return why a release must not be used on a kind of machine, or None when it may be."""
    for release, where, reason in _DENIED:
        if parse_version(version) == release and machine == where:
            return reason
    return None


def load_advice(version: str, ir: int, opset: int) -> Optional[str]:
    """Return what to do when a model is beyond the limits of ``version``; None when it is not."""
    limits = limits_of(version)
    if limits is not None and ir <= limits.ir and opset <= limits.opset:
        return None
    oldest = oldest_for(ir, opset)
    if oldest is None:
        return "export the model with an older opset: no known onnxruntime loads it"
    return f"pip install 'onnxruntime>={oldest}', or export the model for an older one"
