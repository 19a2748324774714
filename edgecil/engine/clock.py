"""How long a run has taken, its interruptions left out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Time that was counted so far; it runs from :meth:`start` to the next :meth:`count`."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Time that the threads of this process spent on cores, added up: other work on the machine
    does not lengthen it."""
    _since: tuple[float, float] = field(default=(0.0, 0.0), repr=False)

    def start(self) -> None:
        """Run from now on."""
        self._since = time.monotonic(), time.process_time()

    def count(self) -> None:
        """Add the time since the start or the last count, and run on."""
        wall, cpu = self._since
        self.start()
        self.seconds += self._since[0] - wall
        self.cpu_seconds += self._since[1] - cpu
