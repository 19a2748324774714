"""30,000 real images under a memory limit of the kernel that is below what they take decoded.

Needs EDGECIL_TEST_DATA with the CIFAR-100 zips, and the right to make a memory control group.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

DATA = Path(os.environ.get("EDGECIL_TEST_DATA", ""))
IMAGES, SIDE = 30_000, 64
DECODED = IMAGES * SIDE * SIDE * 3
LIMIT = 800_000_000
"""Bytes: about 550 MB for torch and the steps, and not enough beside them for the images."""
CGROUP = Path("/sys/fs/cgroup/memory")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("EDGECIL_TEST_DATA"), reason="EDGECIL_TEST_DATA is not set"
    ),
]


@pytest.fixture
def cgroup():
    """A memory control group (version 1) with the limit, or a skip where none can be made."""
    path = CGROUP / f"edgecil_stream_{os.getpid()}"
    try:
        path.mkdir()
        (path / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError as error:
        pytest.skip(f"no memory cgroup: {error}")
    yield path
    path.rmdir()


@pytest.fixture
def folder(tmp_path):
    """100 classes of CIFAR-100 with 250 images each, 20 of them with 500."""
    for part, classes in (("a", 100), ("b", 20)):
        with zipfile.ZipFile(DATA / f"cifar100-train-{part}.zip") as archive:
            names = [n for n in archive.namelist() if n.endswith(".webp")]
            chosen = sorted({Path(n).parent.name for n in names})[:classes]
            archive.extractall(tmp_path, [n for n in names if Path(n).parent.name in chosen])
    return tmp_path / "train"


def learned(folder, root, cgroup=None) -> tuple[dict, str]:
    """Return what the manifest says of one epoch in a process of its own, and its stderr."""
    command = [
        *(sys.executable, "-m", "edgecil_cli", "learn", "--new-data", folder, "--json"),
        *("--workspace", root, "--method", "finetune", "--arch", "resnet8", "--epochs", 1),
        *("--image-size", SIDE, "--batch-size", 32, "--precision", "float32"),
        "--no-record-ranges",
    ]
    enter = f"echo $$ > {cgroup}/cgroup.procs && " if cgroup else ""
    done = subprocess.run(
        ["sh", "-c", enter + 'exec "$@"', "sh", *map(str, command)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=3600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["result"]["training"], done.stderr


def test_thirty_thousand_images_stream_under_a_memory_limit(cgroup, folder, tmp_path):
    training, told = learned(folder, tmp_path / "many", cgroup)
    assert training["new_images"] == IMAGES
    # Nobody asked for it.
    assert "30,000 images are streamed from a temporary file of 369 MB" in told
    assert "oom_kill 0" in (cgroup / "memory.oom_control").read_text()
    for label in ("apple", "bee"):
        shutil.copytree(folder / label, tmp_path / "few" / label)
    few, told = learned(tmp_path / "few", tmp_path / "two")
    assert "streamed" not in told
    # Libraries included, and the largest that the kernel saw: the images are not in it.
    assert training["peak_rss_bytes"] < few["peak_rss_bytes"] + DECODED / 4
