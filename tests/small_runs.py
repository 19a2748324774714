"""Learning small folders through the public API, and comparing what is on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from edgecil_runtime import container

from edgecil import api
from edgecil.workspace import Workspace

QUICK = {"arch": "resnet8", "epochs": 1, "precision": "float32", "record_ranges": False}


def learn(folder, root, **settings):
    """Return the result of learning ``folder`` into the workspace ``root``, quickly."""
    return api.learn(folder, workspace=root, **{**QUICK, **settings})


def tree(root: Path) -> dict[str, bytes | None]:
    """Return every path below ``root`` and the bytes of files; the lock file aside."""
    return {
        str(p.relative_to(root)): None if p.is_dir() else p.read_bytes()
        for p in sorted(Path(root).rglob("*"))
        if p.name != "lock"
    }


def copied(root: Path, to: Path) -> Path:
    """Return a copy of a workspace at ``to``."""
    shutil.copytree(root, to)
    return to


def weights(root: Path, version: int | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of a version, read back from its file."""
    place = Workspace(root)
    number = place.current() if version is None else version
    data = place.read(number, "weights.safetensors")
    assert data is not None
    return container.decode(data)[0]


def equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    """Return whether two sets of arrays are equal to the bit."""
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)
