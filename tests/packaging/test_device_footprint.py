"""What a device must hold: a small package, numpy and onnxruntime, and nothing else."""

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LARGEST = 400_000
"""Bytes of the unpacked package; numpy and onnxruntime take a hundred megabytes."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which the wheel of the runtime is unpacked, as pip does it."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT / "devices", check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_package_is_small_and_asks_for_numpy_alone(installed):
    size = sum(path.stat().st_size for path in installed.rglob("*") if path.is_file())
    assert size < LARGEST
    assert all(
        path.suffix in (".py", ".typed") for path in (installed / "edgecil_runtime").iterdir()
    )
    project = tomllib.loads((ROOT / "devices" / "pyproject.toml").read_text())["project"]
    assert [text.partition(">")[0] for text in project["dependencies"]] == ["numpy"]


def test_every_module_imports_numpy_and_onnxruntime_alone(installed):
    code = """
import importlib, json, pathlib, sys
before = set(sys.modules)  # what .pth files of the environment load, before anything runs
import edgecil_runtime
home = pathlib.Path(edgecil_runtime.__file__).parent
for path in sorted(home.glob("*.py")):
    if path.stem not in ("__init__", "__main__"):
        importlib.import_module(f"edgecil_runtime.{path.stem}")
import onnxruntime
files = {n: str(getattr(m, "__file__", None)) for n, m in sys.modules.items() if n not in before}
tops = {name.partition(".")[0] for name, file in files.items() if "site-packages" in file}
print(json.dumps([str(home), sorted(tops)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={"PYTHONPATH": str(installed), "PATH": "/usr/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    home, tops = json.loads(done.stdout)
    assert home == str(installed / "edgecil_runtime")
    assert tops == ["numpy", "onnxruntime"]


def test_the_wheel_of_the_library_holds_the_profiles_of_targets(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    assert "edgecil/exporting/profiles/rpi4.json" in zipfile.ZipFile(wheel).namelist()
