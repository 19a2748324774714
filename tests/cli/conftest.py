"""Small image folders, a workspace with two versions, and ways to call the command line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout; fails when there is anything else."""
        return json.loads(self.out)


def _ask(*arguments: object) -> Answer:
    """Call the command line in this process, where torch is loaded once."""
    from edgecil_cli.app import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(a) for a in arguments])
    return Answer(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def ask() -> Callable[..., Answer]:
    """Calls the command line."""
    return _ask


def _environment(**more: str) -> dict[str, str]:
    """The environment of a child process that finds the packages, installed or not."""
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "cli", ROOT / "devices")))
    return {**kept, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="session")
def environment() -> Callable[..., dict[str, str]]:
    """Returns the environment of a child process."""
    return _environment


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts the command line in a process of its own; its streams are pipes unless given."""

    def popen(*arguments: object, env: dict[str, str] | None = None, **rest: Any) -> Any:
        command = [sys.executable, "-m", "edgecil_cli", *map(str, arguments)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=_environment(**env or {}), **{**streams, **rest})

    return popen


def _write_images(folder: Path, classes: str, count: int = 8, side: int = 24) -> Path:
    """Write ``count`` noisy images of one colour per class; classes are separated by spaces."""
    rng = np.random.default_rng(sum(classes.encode()))
    for name in classes.split():
        (folder / name).mkdir(parents=True)
        colour = rng.integers(0, 256, 3)
        for number in range(count):
            noise = rng.integers(-40, 40, (side, side, 3))
            pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def write_images() -> Callable[..., Path]:
    """Writes a folder of class folders."""
    return _write_images


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "EDGECIL_WORKSPACE", "EDGECIL_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three classes."""
    return _write_images(tmp_path_factory.mktemp("first"), "cat dog fox")


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two more classes."""
    return _write_images(tmp_path_factory.mktemp("second"), "owl rat")


@pytest.fixture(scope="session")
def taught(
    tmp_path_factory: pytest.TempPathFactory, first: Path, second: Path
) -> tuple[Path, list[Answer]]:
    """A workspace with two versions, and what ``learn`` said when it made them."""
    root = tmp_path_factory.mktemp("taught") / ".edgecil"
    common = ("--workspace", root, "--epochs", 1)
    answers = [
        _ask(
            "learn", "--new-data", first, "--arch", "resnet8", "--method", "icarl",
            "--exemplars-per-class", 3, "--test-data", first, *common,
        ),
        _ask("learn", "--new-data", second, "--test-data", second, "--json", *common),
    ]  # fmt: skip
    assert [a.code for a in answers] == [0, 0], answers
    return root, answers


@pytest.fixture(scope="session")
def known(taught: tuple[Path, list[Answer]]) -> Path:
    """The workspace with two versions, to be read only."""
    return taught[0]


@pytest.fixture
def own(known: Path, tmp_path: Path) -> Path:
    """A copy of the workspace, to be changed."""
    shutil.copytree(known, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="session")
def interrupted(tmp_path_factory: pytest.TempPathFactory, first: Path) -> tuple[Path, Answer]:
    """A workspace where the first run was stopped by its time limit."""
    root = tmp_path_factory.mktemp("stopped") / ".edgecil"
    answer = _ask(
        "learn", "--new-data", first, "--arch", "resnet8", "--epochs", 300, "--workspace", root,
        "--time-limit", "0.1s",
    )  # fmt: skip
    return root, answer
