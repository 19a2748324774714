"""What is packaged: one version, the pinned runtime, no folder called cli or devices."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import edgecil
import edgecil_runtime

ROOT = Path(__file__).parents[2]


def test_both_distributions_have_one_version_and_the_library_pins_the_runtime():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert edgecil.__version__ == edgecil_runtime.__version__
    assert f"edgecil-runtime=={edgecil_runtime.__version__}" in project["dependencies"]


def test_the_two_onnxruntimes_are_only_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not any(d.startswith("onnxruntime") for d in project["dependencies"])
    assert [d.split(">")[0] for d in project["optional-dependencies"]["cpu"]] == ["onnxruntime"]
    assert [d.split(">")[0] for d in project["optional-dependencies"]["gpu"]] == ["onnxruntime-gpu"]


def test_wheels_hold_the_packages_and_nothing_else(tmp_path):
    for source in (ROOT, ROOT / "devices"):
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
            cwd=source, check=True, capture_output=True,
        )  # fmt: skip
    found = {}
    for wheel in tmp_path.glob("*.whl"):
        names = zipfile.ZipFile(wheel).namelist()
        found[wheel.name.split("-")[0]] = {n.split("/")[0] for n in names if ".dist-info" not in n}
        assert any(n.endswith("py.typed") for n in names)
    assert found == {"edgecil": {"edgecil", "edgecil_cli"}, "edgecil_runtime": {"edgecil_runtime"}}
