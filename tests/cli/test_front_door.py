"""init, doctor, gc, forget and rename as their user meets them: real processes, 80 columns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len

from edgecil.doctor import check_cores, check_cpu, check_gpu, check_workspace, driver_version
from edgecil.units import format_bytes
from edgecil.workspace import Workspace
from edgecil_runtime.doctor import OK, WARNING, WRONG

models = pytest.importorskip("torchvision.models")


@pytest.fixture(scope="session")
def delivered(tmp_path_factory) -> Path:
    """A folder with a model trained elsewhere, and its labels."""
    folder = tmp_path_factory.mktemp("delivered")
    torch.manual_seed(0)
    model = models.mobilenet_v3_small(num_classes=2)
    torch.save({"model": model.state_dict()}, folder / "base.pt")
    (folder / "labels.txt").write_text("hen\nowl\n")
    return folder


@pytest.fixture
def edgecil(environment, tmp_path):
    """Calls the command in a process of its own, in an empty folder."""

    def call(*arguments, **env):
        return subprocess.run(
            [sys.executable, "-m", "edgecil_cli", *map(str, arguments)], cwd=tmp_path,
            env=environment(COLUMNS="80", **env), capture_output=True, text=True, check=False,
        )  # fmt: skip

    return call


def narrow(text: str) -> bool:
    """Return whether no line but one long word is wider than the terminal."""
    return all(cell_len(line) <= 80 or len(line.split()) <= 2 for line in text.splitlines())


def test_init_shows_what_it_took_over_and_what_comes_next(edgecil, delivered, tmp_path):
    done = edgecil(
        "init", "--weights", delivered / "base.pt", "--classes", delivered / "labels.txt",
        "--arch", "mobilenet_v3_small", "--mean", 0.485, 0.456, 0.406,
        "--std", 0.229, 0.224, 0.225, "--imgsz", 96,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("version 1: 2 classes, trained elsewhere\n")
    assert "mobilenet_v3_small" in done.stdout and "96 x 96 pixels" in done.stdout
    assert "next: edgecil learn --new-data dir/" in done.stderr and narrow(done.stdout)
    status = edgecil("status", "--json")
    current = json.loads(status.stdout)["result"]["current"]
    assert (current["method"], current["classes"], current["kept_bytes"]) == ("foreign", 2, 0)
    again = edgecil(
        "init", "--weights", delivered / "base.pt", "--classes", delivered / "labels.txt",
        "--arch", "mobilenet_v3_small", "--preset", "imagenet", "--json",
    )  # fmt: skip
    assert again.returncode == 2 and json.loads(again.stdout)["error"]["code"] == "usage"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [([], "missing option"), (["--preset", "imagenet", "--arch", "resnet81"], "unknown arch"),
     (["--arch", "resnet18"], "--mean, --std, --image-size missing"),
     (["--preset", "imagenet", "--arch", "resnet18"], "does not fit resnet18:")],
)  # fmt: skip
def test_init_refuses_with_one_line_and_a_hint(ask, delivered, tmp_path, arguments, problem):
    files = ["--weights", delivered / "base.pt", "--classes", delivered / "labels.txt"]
    answer = ask("init", *files, *arguments, "--workspace", tmp_path / "w")
    assert answer.code == 2 and problem in answer.err and answer.out == ""
    assert answer.err.startswith("error: ") and len(answer.err.splitlines()) <= 2
    assert not (tmp_path / "w").exists()


def test_gc_tells_before_it_removes(ask, own):
    dry = ask("gc", "--keep", 1, "--dry-run", "--workspace", own, "--json").json["result"]
    assert [v["version"] for v in dry["versions"]] == [1] and dry["removed"] is False
    refused = ask("gc", "--keep", 1, "--workspace", own)
    assert refused.code == 2 and f"edgecil gc --keep 1 --yes --workspace {own}\n" in refused.err
    size = format_bytes(dry["bytes"])
    assert f"it removes the files of version 1 ({size}), and cannot be undone" in refused.err
    assert (own / "versions" / "1" / "weights.safetensors").exists()
    done = ask("gc", "--keep", 1, "--yes", "--workspace", own, "-q")
    assert done.out == f"{dry['bytes']}\n"
    assert not (own / "versions" / "1" / "weights.safetensors").exists()
    assert "gone" in ask("history", "--workspace", own).out
    versions = ask("history", "--workspace", own, "--json").json["result"]["versions"]
    assert [v["complete"] for v in versions] == [False, True]
    idle = ask("gc", "--keep", 1, "--workspace", own)
    assert idle.code == 0 and "nothing to remove" in idle.out
    evaluated = ask("rollback", "--workspace", own)
    assert evaluated.code == 1 and "removed by edgecil gc" in evaluated.err


def test_forget_needs_a_word_and_records_what_it_did(ask, own, known):
    name = ask("status", "--workspace", known) and Workspace(known).manifest().names[0]
    refused = ask("forget", name, "--workspace", own)
    assert refused.code == 2 and "cannot be undone" in refused.err and "--yes" in refused.err
    assert f"edgecil forget {name} --yes --workspace {own}\n" in refused.err
    assert "from versions 1, 2" in refused.err.replace("\n", " ")
    done = ask("forget", name, "--yes", "--workspace", own, "--json").json["result"]["versions"]
    assert {v["version"] for v in done} == {1, 2}
    assert all(v["what"] == f"class {name}" and v["images"] > 0 and v["by"] for v in done)
    again = ask("forget", name, "--yes", "--workspace", own)
    assert again.code == 1 and "no version keeps an image" in again.err


def test_rename_makes_a_version_and_offers_the_way_back(ask, own):
    name = Workspace(own).manifest().names[0]
    done = ask("rename", name, "a new name", "--workspace", own)
    assert done.code == 0 and done.out.startswith(f"version 3: as version 2, with {name} called")
    assert f"next: edgecil rollback 2 --workspace {own}\n" in done.err
    back = ask("rollback", "--workspace", own)
    assert f"next: edgecil rollback 3 --workspace {own}\n" in back.err
    assert (
        f"next: edgecil learn --new-data dir/ --workspace {own}\n"
        in ask("status", "--workspace", own).err
    )
    ask("rollback", 3, "--workspace", own)
    assert Workspace(own).manifest().names[0] == "a new name"


def test_history_says_where_the_images_are_gone(ask, own):
    before = ask("history", "--workspace", own)
    assert "images gone" not in before.out + before.err
    (own / "versions" / "1" / "memory.safetensors").unlink()
    answer = ask("history", "--workspace", own)
    gone = [line for line in answer.out.splitlines() if "images gone" in line]
    assert len(gone) == 1 and gone[0].startswith("1 ")
    assert "note: images gone: stored for the last two increments only" in answer.err
    versions = ask("history", "--workspace", own, "--json").json["result"]["versions"]
    assert [v["memory_gone"] for v in versions] == [True, False]
    assert [v["complete"] for v in versions] == [True, True]
    ask("rollback", "--workspace", own)
    assert "images gone; there were" in ask("status", "--workspace", own).out


def doctored(environment, tmp_path, **modules):
    """Return doctor's findings where some packages are replaced by files of this text."""
    for name, text in modules.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    env = environment(COLUMNS="80")
    env["PYTHONPATH"] = f"{tmp_path}:{env['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "edgecil_cli", "doctor", "--json"], cwd=tmp_path, env=env,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    answer = json.loads(done.stdout)["result"]
    return done.returncode, {f["name"]: f for f in answer["findings"] if f["status"] != OK} | {
        "fit": answer["fit"]
    }


def test_doctor_survives_a_torch_that_kills_its_process(environment, tmp_path):
    code, found = doctored(environment, tmp_path, torch="import os; os.abort()")
    assert code == 1 and found["fit"] is False
    assert found["torch"]["status"] == WRONG and "signal 6" in found["torch"]["found"]
    assert "pip install" in found["torch"]["advice"]


def test_doctor_finds_a_torchvision_of_another_build(environment, tmp_path):
    text = "raise RuntimeError('operator torchvision::nms does not exist')"
    code, found = doctored(environment, tmp_path, torchvision=text)
    assert code == 1 and "torchvision::nms" in found["torchvision"]["found"]
    assert "install both from one index" in found["torchvision"]["advice"]


def test_doctor_of_this_installation(edgecil):
    done = edgecil("doctor")
    assert done.returncode == 0, done.stdout
    assert "nothing is wrong" in done.stdout and narrow(done.stdout)
    for name in ("python", "torch", "onnxruntime", "gpu", "cpu", "cores", "disk", "workspace"):
        assert f"\n{name} " in "\n" + done.stdout


def test_a_gpu_that_torch_does_not_use_is_reported(tmp_path):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu\n")
    assert driver_version(str(driver)) == "570.86.15"
    assert driver_version(str(tmp_path / "none")) is None
    cpu_only = check_gpu({"gpus": [], "cuda": None}, "570.86.15")
    assert cpu_only.status == WARNING and "CPUs only" in (cpu_only.advice or "")
    old = check_gpu({"gpus": [], "cuda": "13.2"}, "570.86.15")
    assert "upgrade the driver" in (old.advice or "")
    assert check_gpu({"gpus": ["H200"], "cuda": "13.2"}, "570.86.15").status == OK
    assert check_gpu({"gpus": [], "cuda": None}, None).status == OK


def test_cores_and_instructions(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert check_cores().status == WARNING and "unset it" in (check_cores().advice or "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert check_cores().status == OK
    assert check_cpu(["sse2"]).status == WARNING
    assert check_cpu(["avx2", "avx512_vnni"]).found == "avx2 avx512_vnni"


def test_the_state_of_a_workspace(own, interrupted, tmp_path):
    assert [f.status for f in check_workspace(Workspace(own))] == [OK]
    with Workspace(own).locked():
        assert [f.name for f in check_workspace(Workspace(own)) if f.status != OK] == ["lock"]
    run = next(f for f in check_workspace(Workspace(interrupted[0])) if f.name == "run")
    assert run.status == WARNING and run.advice == "edgecil learn --resume, or --discard"
    (own / "versions" / "2" / "weights.safetensors").write_bytes(b"damaged")
    (damaged,) = check_workspace(Workspace(own))
    assert damaged.status == WRONG and "SHA-256" in damaged.found and damaged.advice
    (none,) = check_workspace(Workspace(tmp_path / "none"))
    assert none.status == OK and not (tmp_path / "none").exists()
