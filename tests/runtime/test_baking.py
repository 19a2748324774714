"""Models baked for this onnxruntime and CPU, and every reason not to use one."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from edgecil_runtime import BundleError, Classifier, InputError, baking, baking_worker, cpu
from edgecil_runtime.baking import FOLDER, RECORD, WEIGHTS, BakedInfo, bake, find, usable
from edgecil_runtime.bundle import MODEL, open_bundle
from edgecil_runtime.spawn import last_words


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """An int8 ResNet-32 and its baked form beside it, which nobody may change."""
    from importlib import util

    spec = util.spec_from_file_location("toys", Path(__file__).with_name("conftest.py"))
    toys = util.module_from_spec(spec)
    spec.loader.exec_module(toys)
    path = toys.resnet_bundle(tmp_path_factory.mktemp("slot"), 32, True)
    bake(path, path.parent / FOLDER)
    return path


@pytest.fixture
def slot(kept, tmp_path):
    """A copy of it that may be changed."""
    shutil.copytree(kept.parent, tmp_path / "a")
    return tmp_path / "a" / kept.name


def changed(slot, **values):
    record = slot.parent / FOLDER / RECORD
    record.write_text(json.dumps({**json.loads(record.read_text()), **values}))


def test_a_baked_model_gives_the_scores_of_the_portable_one(kept, tmp_path):
    baked, portable = Classifier(kept), Classifier(kept, baked=tmp_path / "nowhere")
    assert (baked.plan, baked.not_baked) == ("baked", None)
    assert portable.plan == "fast" and "nothing is baked" in portable.not_baked
    draw = np.random.default_rng(0)
    for shape in ((32, 32, 3), (50, 40, 3)):
        image = draw.integers(0, 256, shape, np.uint8)
        np.testing.assert_allclose(baked.scores(image), portable.scores(image), atol=1e-4)
    assert sum(baked.need[2:4]) < sum(portable.need[2:4])  # weights and their copies


def test_what_is_written(kept):
    info = find(open_bundle(kept))
    assert isinstance(info, BakedInfo)
    assert usable(kept) == info.model_path == kept.parent / FOLDER / MODEL
    assert sorted(os.listdir(info.folder)) == sorted([MODEL, RECORD, WEIGHTS])
    record = json.loads((info.folder / RECORD).read_text())
    import onnxruntime

    assert record["onnxruntime"] == onnxruntime.__version__
    assert record["isa"] == cpu.instruction_sets()
    assert record["model_sha256"] == open_bundle(kept).manifest.files[MODEL].sha256
    assert info.bytes == sum(entry["bytes"] for entry in record["files"].values())
    # Weights of 0.5 MB are mapped from their own file, the graph itself is small.
    assert (info.folder / WEIGHTS).stat().st_size > 400_000
    assert (info.folder / MODEL).stat().st_size < 200_000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"onnxruntime": "1.16.0"}, "baked for onnxruntime 1.16.0, this is"),
        ({"isa": ["aarch64", "asimd"]}, "baked for another CPU"),
        ({"model_sha256": "0" * 64}, "another model"),
        ({"schema": 2}, "schema 2"),
        ({"files": {}}, "baked files are"),
        ({"files": {MODEL: {"sha256": "0" * 64, "bytes": 1}}}, "is damaged"),
        ({"files": {MODEL: {"bytes": 1}, "../x": {"bytes": 1}}}, "baked files are"),
        ({"files": []}, "is damaged"),
        ({"isa": 3}, "is damaged"),
    ],
)
def test_a_baked_model_that_does_not_fit_is_passed_over(slot, change, reason):
    changed(slot, **change)
    assert reason in usable(slot)
    model = Classifier(slot)
    assert model.plan == "fast" and reason in model.not_baked
    assert model.predict(np.zeros((32, 32, 3), np.uint8)).label.startswith("class ")


def test_damaged_files_are_passed_over(slot):
    folder = slot.parent / FOLDER
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[1000] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    assert usable(slot).endswith(f"{WEIGHTS} is damaged")
    (folder / WEIGHTS).unlink()
    assert WEIGHTS in usable(slot)
    (folder / RECORD).write_text("{")
    assert RECORD in usable(slot) and Classifier(slot).plan == "fast"


def test_baking_again_replaces_what_was_there(slot):
    folder = slot.parent / FOLDER
    (folder / WEIGHTS).write_bytes(b"rubbish")
    info = bake(slot, folder)
    assert usable(slot, folder) == info.model_path
    assert {p.name for p in slot.parent.iterdir()} == {slot.name, FOLDER}


def test_what_cannot_be_baked_leaves_nothing_behind(tmp_path, toy):
    with pytest.raises(InputError, match="no such bundle"):
        bake(tmp_path / "nowhere", tmp_path / "baked")
    path = toy.colour_bundle(tmp_path)
    with pytest.raises(BundleError, match=r"not baked in 0\.001 s"):
        bake(path, tmp_path / "baked", deadline=0.001)
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(toy.colour_model()[0])
    model.graph.node[-1].input[0] = "missing"
    broken = toy.make_bundle(tmp_path / "b", (model.SerializeToString(), 0, 0), "abc", 8, 8)
    with pytest.raises(BundleError, match=r"cannot be baked: .*missing"):
        bake(broken, tmp_path / "baked")
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "b"}


def test_a_record_that_turns_out_unusable_is_an_error(slot, monkeypatch):
    monkeypatch.setattr(baking, "find", lambda *_: "nobody knows")
    with pytest.raises(BundleError, match="not usable: nobody knows"):
        bake(slot, slot.parent / FOLDER)


def test_the_worker_writes_graph_and_weights(kept, tmp_path):
    import onnxruntime

    version = baking_worker.write(str(kept / MODEL), tmp_path, "w.bin")
    assert version == onnxruntime.__version__
    assert {p.name for p in tmp_path.iterdir()} == {MODEL, "w.bin"}


def test_last_words():
    assert last_words(-9) == "its process died of SIGKILL"
    assert last_words(-200) == "its process died of signal 200"
    assert last_words(3) == "its process ended with status 3"
    assert last_words(1, b"Traceback\n  x\nValueError: y\n") == "ValueError: y"


def test_instruction_sets_of_other_machines(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nFeatures : fp asimd evtstrm asimddp\n")
    assert cpu.cpu_flags(str(info)) == ["fp", "asimd", "evtstrm", "asimddp"]
    assert cpu.cpu_flags(str(tmp_path / "none")) == []
    info.write_text("processor : 0\n")
    assert cpu.cpu_flags(str(info)) == []
    assert cpu.instruction_sets()[0] == os.uname().machine


def test_the_worker_is_a_command(kept, tmp_path, monkeypatch, capsys):
    import runpy

    name = "edgecil_runtime.baking_worker"
    monkeypatch.setattr("sys.argv", ["x", str(kept / MODEL), str(tmp_path), "w.bin"])
    monkeypatch.delitem(sys.modules, name)
    runpy.run_module(name, run_name="__main__")
    assert capsys.readouterr().out.count(".") == 2
    monkeypatch.setattr("sys.argv", ["x", str(tmp_path / "none"), str(tmp_path), "w.bin"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(name, run_name="__main__")
    assert caught.value.code == 1 and "none" in capsys.readouterr().err
