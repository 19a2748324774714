"""Targets: devices that bundles are made for, one JSON file each in ``profiles/``.

A profile fills the choices of an export and bounds what it may need. Figures that nobody has
measured on the device are named in ``unverified``. Neither torch nor onnx is imported here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgecil.errors import BudgetError, UsageError
from edgecil.spelling import nearest
from edgecil.units import format_bytes, parse_bytes
from edgecil_runtime import manifest
from edgecil_runtime.compatibility import limits_of
from edgecil_runtime.memory import decoding_bytes

_FOLDER = Path(__file__).parent / "profiles"
_SIZES = ("ram", "memory", "flash")
_COPIES = 4
"""Bundles on the flash: two slots, and in each what is baked from the bundle, at most as large."""


@dataclass(frozen=True)
class Target:
    """A device: what it is, what one process may use of it, and what to export for it.

    ``ram``, ``memory`` (peak of the process that runs the model) and ``flash`` (all that is
    kept of a model) are bytes. ``onnxruntime`` is the newest release for its ``python``.
    """

    name: str
    title: str
    cpu: str
    arch: str
    isa: tuple[str, ...]
    ram: int
    memory: int
    flash: int
    python: str
    onnxruntime: str
    threads: int
    reduce_range: bool
    resize_in_graph: bool
    max_pixels: int
    unverified: tuple[str, ...]
    note: str

    def to_json(self) -> dict[str, Any]:
        """Return the profile as a JSON object, with sizes in bytes."""
        return asdict(self)

    def entry(self) -> manifest.Target:
        """Return what the manifest of a bundle says about the target."""
        return manifest.Target(self.name, self.threads, self.memory)


def names() -> list[str]:
    """Return the names of all targets."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def load(name: str) -> Target:
    """Return the target of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in names():
        raise UsageError(f"unknown target {name!r}", hint=nearest(name, names()))
    data = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    data.update({key: parse_bytes(data[key]) for key in _SIZES})
    data.update({key: tuple(data[key]) for key in ("isa", "unverified")})
    assert set(data) | {"name"} == {field.name for field in fields(Target)}, name
    return Target(name=name, **data)


def memory_needed(target: Target, model_peak: int) -> int:
    """Return the peak of a process, in bytes, that decodes the largest image and predicts it.

    ``model_peak`` is that of a process which loads the model and predicts small images.
    """
    return model_peak + decoding_bytes(target.max_pixels, 1)


def check_fit(
    target: Target, *, model_peak: int, file_bytes: int, ir: int, opset: int, precision: str
) -> None:
    """Make sure that a bundle fits a target.

    ``model_peak`` is the measured peak of the device runtime with it, ``file_bytes`` its size.

    Raises:
        BudgetError: it needs more memory, flash, or a newer onnxruntime; the hint says what would.
    """
    smaller = "export with --precision int8" if precision != "int8" else "learn a smaller network"
    need = memory_needed(target, model_peak)
    if need > target.memory:
        raise BudgetError(
            f"{target.name} allows {format_bytes(target.memory)} of memory, this bundle needs "
            f"{format_bytes(need)}: {format_bytes(model_peak)} for the model, "
            f"{format_bytes(need - model_peak)} to decode {target.max_pixels:,} pixels",
            hint=f"{smaller}, or take a target with more memory: {_others('memory', need)}",
        )
    flash = _COPIES * file_bytes
    if flash > target.flash:
        raise BudgetError(
            f"{target.name} allows {format_bytes(target.flash)} of flash, this bundle needs "
            f"{format_bytes(flash)}: two slots with a baked copy each",
            hint=f"{smaller}, or take a target with more flash: {_others('flash', flash)}",
        )
    limits = limits_of(target.onnxruntime)
    if limits is None or ir > limits.ir or opset > limits.opset:
        raise BudgetError(
            f"{target.name} has onnxruntime {target.onnxruntime}, which does not load "
            f"IR {ir} and opset {opset}",
            hint="upgrade the system of the device",
        )


def _others(what: str, need: int) -> str:
    found = [name for name in names() if getattr(load(name), what) >= need]
    return ", ".join(found) or "none has"
