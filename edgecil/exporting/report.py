"""What an export found out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecil.exporting.delta import DeltaReport
from edgecil.exporting.targets import Target
from edgecil.exporting.verify import Accuracy, Comparison


@dataclass(frozen=True)
class ExportReport:
    """A bundle that passed its gates. Sizes are in bytes, times in milliseconds or seconds."""

    path: Path
    name: str
    version: int
    method: str
    precision: str
    fixed_input: bool
    labels: tuple[tuple[str, int], ...]
    """Class names in order of the scores, and the increment that introduced each."""
    file_bytes: dict[str, int]
    fp32_bytes: int
    """Size of the float32 graph, for comparison."""
    parity: Comparison
    """The float32 graph against torch."""
    agreement: Comparison | None
    """The int8 graph against the float32 one; None for a float32 bundle."""
    accuracy: dict[str, Accuracy] | None
    """By ``old``, ``new`` and ``all`` classes; None: not measured."""
    latency_ms: dict[str, float]
    """Median per image on this host with one thread, by precision."""
    weights_bytes: int
    activation_bytes: int
    device_memory: dict[str, int]
    """Peak resident and anonymous bytes of the device runtime with this bundle, on this host."""
    calibration: dict[str, Any]
    seconds: dict[str, float]
    """Time of every stage."""
    delta: DeltaReport | None = None
    target: Target | None = None

    def measured(self) -> dict[str, Any]:
        """Return the figures that travel in the bundle's manifest."""
        accuracy = self.accuracy
        return {
            "fp32_bytes": self.fp32_bytes,
            "parity": self.parity.to_json(),
            "agreement": None if self.agreement is None else self.agreement.to_json(),
            "accuracy": "not measured"
            if accuracy is None
            else {name: group.to_json() for name, group in accuracy.items()},
            "latency_ms": {**self.latency_ms, "threads": 1},
            **self.device_memory,
        }

    def to_json(self) -> dict[str, Any]:
        """Return everything as a JSON object."""
        return {
            "path": str(self.path),
            "name": self.name,
            "version": self.version,
            "method": self.method,
            "precision": self.precision,
            "fixed_input": self.fixed_input,
            "labels": [{"name": name, "increment": i} for name, i in self.labels],
            "file_bytes": self.file_bytes,
            "memory": {
                "weights_bytes": self.weights_bytes,
                "activation_bytes": self.activation_bytes,
            },
            "calibration": self.calibration,
            "seconds": self.seconds,
            "target": None if self.target is None else self.target.name,
            "delta": None if self.delta is None else self.delta.to_json(),
            **self.measured(),
        }
