"""What the engine tells whoever watches: plain values, a few per second at most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PhaseStarted:
    """A phase begins (or continues, when ``step`` > 0)."""

    name: str
    number: int
    phases: int
    step: int
    steps: int
    images: int


@dataclass(frozen=True)
class Progress:
    """Where the phase is; ``terms`` are means since the last event, unweighted."""

    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float
    seconds_left: float
    terms: Mapping[str, float]


@dataclass(frozen=True)
class Note:
    """A sentence for the user about a choice that was made."""

    text: str


@dataclass(frozen=True)
class Stage:
    """Book-keeping that takes a moment: decoding, choosing exemplars, saving."""

    text: str
    done: int = 0
    total: int = 0


Event = PhaseStarted | Progress | Note | Stage
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""
