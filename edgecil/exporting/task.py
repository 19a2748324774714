"""What is to be exported."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from edgecil._version import __version__
from edgecil.exporting.sessions import Pixels
from edgecil.exporting.targets import Target
from edgecil.exporting.verify import centre
from edgecil.nets.net import Net
from edgecil.nets.rules import Rule
from edgecil.settings import Preprocess
from edgecil_runtime.bundle import Bundle

Precision = Literal["int8", "fp32"]


@dataclass(frozen=True)
class Task:
    """A model and what its bundle shall be; ``seconds`` fills as the stages pass."""

    net: Net
    rule: Rule
    preprocess: Preprocess
    labels: tuple[tuple[str, int], ...]
    name: str
    version: int
    parent: int | None
    method: str
    precision: Precision
    fixed_input: bool
    max_pixels: int
    previous: Bundle | None = None
    """The bundle from which devices shall get here by a delta."""
    target: Target | None = None
    """The device that the bundle must fit."""
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @property
    def first_new(self) -> int:
        """Label from which on the classes are those of the last increment."""
        last = max(increment for _, increment in self.labels)
        return sum(increment < last for _, increment in self.labels)

    def metadata(self) -> dict[str, str]:
        """Return the properties that travel inside the ONNX file."""
        labels = [{"name": name, "increment": increment} for name, increment in self.labels]
        return {
            "edgecil_version": __version__,
            "labels": json.dumps(labels, ensure_ascii=False),
            "max_pixels": str(self.max_pixels),
            "method": self.method,
            "name": self.name,
            "preprocess": json.dumps(self.preprocess.to_json()),
            "score_kind": self.rule.score_kind,
            "version": str(self.version),
        }

    def inputs(self, squares: Pixels) -> Pixels:
        """Return stored images ``(N, R, R, 3)`` as the graph takes them."""
        return centre(squares, self.preprocess.size) if self.fixed_input else squares
