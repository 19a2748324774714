"""Learning small folders through the public API, and comparing what is on the disk."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np

from edgecil import api
from edgecil.bench.protocol import Protocol
from edgecil.engine import loop
from edgecil.errors import EdgecilError
from edgecil.workspace import Workspace
from edgecil_runtime import container

QUICK = {"arch": "resnet8", "epochs": 1, "precision": "float32", "record_ranges": False}

PROTOCOL = Protocol(
    "small", "six classes in three increments", "folders", (2, 2, 2), order="natural",
    arch="resnet8", epochs=2,
)  # fmt: skip


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


def looking_often(start):
    """Return a ``Session.__init__`` that looks for a stop at every step."""

    def init(self, *arguments, **settings):
        start(self, *arguments, **settings)
        self.poll_seconds = 0.0

    return init


def learn_in_child(root, folder, die, ready, answers, settings):
    """Learn in a process that is killed before its ``die``-th sync or rename; 0 is never.

    The run state is saved after every step, but when calls are counted: these are then those of
    the request and of the commit.
    """
    count = 0

    def counted(real):
        def call(*arguments, **names):
            nonlocal count
            count += 1
            if count == die:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **names)

        return call

    loop.Session.__init__ = looking_often(loop.Session.__init__)
    loop.SAVE_SECONDS = 1e9 if die else 0.0
    for name in ("fsync", "rename", "replace") if die else ():
        setattr(os, name, counted(getattr(os, name)))
    ready.set()
    try:
        learn(folder, root, **settings)
    except EdgecilError as error:
        answers.put(error.message)


def same(left, right):
    """Return whether two results agree in everything that is not a clock or the process."""
    clocks = {"seconds", "cpu_seconds", "images_per_second", "peak_rss_bytes", "peak_device_bytes"}
    return {k: v for k, v in left.items() if k not in clocks} == {
        k: v for k, v in right.items() if k not in clocks
    }
