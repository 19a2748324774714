"""The state of an interrupted run: one container file, replaced atomically.

Random numbers are not part of it: every stream is seeded by counters (seed, increment, phase,
step), so position and tensors are enough to continue to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgecil.context import Context
from edgecil.errors import WorkspaceError
from edgecil_runtime import container

FILE = "state.safetensors"


@dataclass(frozen=True)
class Saved:
    """A run state read back: where it stopped, and every tensor by ``part/name``."""

    phase: int
    step: int
    compute: dict[str, Any]
    seconds: float
    """Training time before the interruption, in seconds."""
    cpu_seconds: float
    images: int
    """Images trained on before the interruption."""
    extra_teachers: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    attempt: int = 1
    """Which run of the phase it was, of those that it was given."""
    over: bool = False
    """Whether this attempt of the phase has made all its steps."""

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors of one part by their names inside it."""
        head = prefix + "/"
        return {n[len(head) :]: t for n, t in self.tensors.items() if n.startswith(head)}


def numpy_arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the tensors as C-order numpy arrays on the CPU."""
    # Not numpy's ascontiguousarray, which makes vectors of scalars.
    return {name: t.detach().cpu().contiguous().numpy() for name, t in tensors.items()}


def module_tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return parameters and buffers of a module as ``prefix/name``."""
    return {f"{prefix}/{name}": value for name, value in module.state_dict().items()}


def save(
    folder: Path,
    ctx: Context,
    optimiser: Mapping[str, Tensor],
    first_teachers: tuple[str, ...],
    **where: Any,
) -> None:
    """Write the run state into ``folder``; ``where`` are the other fields of :class:`Saved`.

    Raises:
        WorkspaceError: the disk is full; the state saved before stays.
    """
    extra = [name for name in ctx.teachers if name not in first_teachers]
    tensors = module_tensors(ctx.net, "net")
    for name, module in ctx.modules.items():
        tensors |= module_tensors(module, f"module:{name}")
    for name in extra:
        tensors |= module_tensors(ctx.teachers[name], f"teacher:{name}")
    tensors |= {f"optimiser/{name}": value for name, value in optimiser.items()}
    metadata = {"run": json.dumps({**where, "extra_teachers": extra})}
    try:
        container.write(folder / FILE, numpy_arrays(tensors), metadata)
    except OSError as error:
        raise WorkspaceError(f"the run state could not be saved: {error.strerror}") from None


def exists(folder: Path) -> bool:
    """Return whether there is a run state in ``folder``: that something was trained."""
    return (folder / FILE).exists()


def load(folder: Path) -> Saved | None:
    """Return the run state in ``folder``, or None when the run stopped before its first step.

    Raises:
        WorkspaceError: the file is damaged.
    """
    if not exists(folder):
        return None
    try:
        arrays, metadata = container.read(folder / FILE)
        where = json.loads(metadata["run"])
        where["extra_teachers"] = tuple(where["extra_teachers"])
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        return Saved(**where, tensors=tensors)
    except (container.ContainerError, KeyError, TypeError, ValueError) as error:
        raise WorkspaceError(
            f"the run state is damaged: {error}", hint="edgecil learn --discard ... to start over"
        ) from None
