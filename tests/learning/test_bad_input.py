"""Whatever is wrong with what the user gave: one clear error, and the workspace as it was."""

from __future__ import annotations

import json
import struct
import unicodedata
import zlib

import numpy as np
import pytest
import small_runs
import toys
from PIL import Image
from small_runs import learn, tree

from edgecil import api
from edgecil.engine.events import Note
from edgecil.errors import (
    AdoptError,
    BudgetError,
    DataError,
    EdgecilError,
    TrainingError,
    UsageError,
    WorkspaceError,
)
from edgecil.workspace import Workspace


def refused(error, root, *arguments, code, says, hint=None, **settings):
    """Learn, and check the refusal: its kind, exit status, words, and that nothing changed."""
    fresh = not root.exists()
    before = {} if fresh else tree(root)
    with pytest.raises(error) as caught:
        learn(*arguments, root, **settings)
    assert caught.value.exit_code == code
    for word in [says] if isinstance(says, str) else says:
        assert word in caught.value.message
    assert hint is None or hint in caught.value.hint
    assert not root.exists() if fresh else tree(root) == before


@pytest.fixture
def folder(tmp_path):
    """A folder of the classes 2 and 3, to be spoiled."""
    return toys.write_folder(tmp_path / "new", range(2, 4), count=4)


@pytest.fixture(params=["fresh", "second"])
def root(request, tmp_path, base):
    """A workspace that is not there yet, and one with a version."""
    return tmp_path / "none" / ".edgecil" if request.param == "fresh" else base("lwm")


class TestFolders:
    def test_no_folder(self, root, tmp_path):
        where = tmp_path / "nowhere"
        refused(DataError, root, where, code=1, says=[str(where), "no such folder"])

    def test_loose_images(self, root, tmp_path):
        (tmp_path / "loose").mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / "loose" / "a.png")
        says = ["1 image lie loose", "one folder of images per class"]
        refused(DataError, root, tmp_path / "loose", code=1, says=says, hint="move the images")

    def test_empty_class(self, root, folder):
        (folder / "class-9").mkdir()
        refused(DataError, root, folder, code=1, says=["no image", "class-9"])

    def test_a_truncated_image_is_named_and_skip_bad_goes_on_without_it(self, root, folder):
        bad = folder / "class-2" / "001.png"
        bad.write_bytes(bad.read_bytes()[:200])
        refused(DataError, root, folder, code=1, says=str(bad), hint="--skip-bad")
        notes = []
        result = learn(folder, root, skip_bad=True, listener=notes.append)
        assert any(isinstance(n, Note) and str(bad) in n.text for n in notes)
        assert result.manifest.training["new_images_per_class"] == [3, 4]
        assert any(str(bad) in note for note in result.manifest.notes)

    def test_all_images_of_a_class_bad(self, root, folder):
        for path in (folder / "class-3").iterdir():
            path.write_bytes(b"no image")
        refused(DataError, root, folder, code=1, says="class-3", skip_bad=True)

    def test_an_image_too_large_to_decode_is_named(self, root, folder):
        # A valid header of 30,000 x 30,000 pixels; decoding them would take 2.7 GB.
        head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + head
        data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
        data += struct.pack(">II", zlib.crc32(chunk), 4096) + b"IDAT" + bytes(4096)
        bad = folder / "class-2" / "000.png"
        bad.write_bytes(data)
        says = [str(bad), "too large"]
        refused(DataError, root, folder, code=1, says=says, hint="--skip-bad")

    def test_names_equal_after_case_folding(self, root, folder):
        toys.write_folder(folder, [7], count=1)
        (folder / "class-7").rename(folder / "CLASS-2")
        refused(DataError, root, folder, code=1, says=["CLASS-2", "class-2"], hint="rename")

    def test_names_equal_after_unicode_composition(self, root, folder):
        for form, label in (("NFC", 2), ("NFD", 3)):
            (folder / f"class-{label}").rename(folder / unicodedata.normalize(form, "né"))
        refused(DataError, root, folder, code=1, says="equal names", hint="rename")

    def test_a_class_order_that_is_not_the_folder(self, root, folder):
        order = ("class-2", "class-8")
        refused(UsageError, root, folder, code=2, says="class_order", class_order=order)


class TestKnownClasses:
    def test_a_class_learned_before(self, base, folders):
        root = base()
        refused(DataError, root, folders[0], code=1, says=["known already", "class-0", "class-1"])

    def test_compared_without_case(self, base, folder):
        (folder / "class-2").rename(folder / "Class-0")
        refused(DataError, base(), folder, code=1, says=["known already", "Class-0"])


class TestFewImages:
    """Few images are reported, not refused: they can be all there is."""

    def test_one_image_in_all(self, root, tmp_path):
        folder = toys.write_folder(tmp_path / "one", [5], count=1)
        result = learn(folder, root)
        assert result.manifest.names[-1] == "class-5"
        assert any("only one image in class class-5" in note for note in result.manifest.notes)
        assert all(map(_finite, small_runs.weights(root).values()))

    @pytest.mark.parametrize("method", ["icarl", "rehearsal", "lwf", "ncm"])
    def test_one_image_per_class(self, method, tmp_path):
        root = tmp_path / ".edgecil"
        for number, labels in enumerate((range(3), range(3, 4)), start=1):
            folder = toys.write_folder(tmp_path / str(number), labels, count=1)
            result = learn(folder, root, method=method)
        assert result.manifest.groups == (3, 1)
        assert all(map(_finite, small_runs.weights(root).values()))


def _finite(array):
    return bool(np.isfinite(array).all())


class TestSettings:
    def test_unknown_method(self, root, folder):
        refused(UsageError, root, folder, code=2, says="'lvm'", hint="lwm", method="lvm")

    def test_unknown_plug_in(self, root, folder):
        refused(UsageError, root, folder, code=2, says="'mnemonix'", method="icarl+mnemonix")

    def test_a_method_is_no_plug_in(self, root, folder):
        refused(UsageError, root, folder, code=2, says="'icarl' is a method", method="lwf+icarl")

    @pytest.mark.parametrize("method", ["icarl+mnemonics+mnemonics", "lwf+muc+muc"])
    def test_a_plug_in_twice(self, root, folder, method):
        plug = method.rpartition("+")[2]
        refused(UsageError, root, folder, code=2, says=f"plug-in {plug} twice", method=method)

    @pytest.mark.parametrize("method", ["lwm+mnemonics", "icarl+muc", "lwm+m2kd", "eeil+mfgr"])
    def test_a_plug_in_on_a_host_that_it_does_not_fit(self, root, folder, method):
        host = method.rpartition("+")[0]
        refused(UsageError, root, folder, code=2, says=["cannot be laid over", host], method=method)

    def test_unknown_option(self, root, folder):
        refused(
            UsageError, root, folder, code=2, says=["lwm", "'gama'"], hint="gamma",
            method="lwm", options={"gama": "1"},
        )  # fmt: skip

    @pytest.mark.parametrize("value", ["-1", "much"])
    def test_an_option_out_of_range(self, root, folder, value):
        options = {"gamma": value}
        refused(
            UsageError, root, folder, code=2, says="option gamma", method="lwm", options=options
        )

    def test_unknown_preset(self, root, folder):
        refused(
            UsageError, root, folder, code=2, says="'icrl'", hint="icarl",
            method="lwf-mc", preset="icrl",
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"val_fraction": 1.0}, "val-fraction"),
            ({"epochs": 0}, "epochs"),
            ({"batch_size": 0}, "--batch-size"),
            ({"lr": 0.0}, "lr"),
            ({"lr": float("nan")}, "lr"),
            ({"precision": "float16"}, "float16"),
            ({"device": "tpu"}, "tpu"),
            ({"memory_budget": 1, "exemplars_per_class": 2}, "exclude each other"),
            ({"codec": "gif"}, "'gif'"),
            ({"codec": "reference"}, "joint"),
            ({"memory_budget": -1}, "negative"),
        ],
    )
    def test_values_out_of_range(self, root, folder, settings, says):
        refused(UsageError, root, folder, code=2, says=says, **settings)

    def test_an_unknown_architecture(self, folder, tmp_path):
        refused(
            UsageError, tmp_path / ".edgecil", folder, code=2, says="resnet33", hint="resnet32",
            arch="resnet33",
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"arch": "resnet32"}, ["resnet8", "resnet32"]),
            ({"image_size": 64}, ["32", "64"]),
            ({"weights": "imagenet"}, ["new workspace"]),
        ],
    )
    def test_another_network_than_the_workspace_has(self, base, folder, settings, says):
        refused(UsageError, base(), folder, code=2, says=says, **settings)

    def test_resume_takes_no_other_settings(self, base, folder):
        root = base()
        before = tree(root)
        for more in ({"new_data": folder}, {"discard": True}, {"epochs": 2}, {"method": "lwm"}):
            with pytest.raises(UsageError, match="resume"):
                api.learn(workspace=root, resume=True, **more)
        with pytest.raises(WorkspaceError, match="no interrupted run"):
            api.learn(workspace=root, resume=True)
        with pytest.raises(UsageError, match="no folder of new images"):
            api.learn(workspace=root)
        assert tree(root) == before


class TestBudgets:
    """Refused before training: exit status 3."""

    @pytest.mark.parametrize("method", ["icarl", "rehearsal"])
    @pytest.mark.parametrize("limit", [0, 300])
    def test_too_few_bytes(self, method, limit, folder, tmp_path, monkeypatch):
        monkeypatch.setattr("edgecil.engine.increment.train", _no_training)
        refused(
            BudgetError, tmp_path / ".edgecil", folder, code=3, says=method, hint="--memory-budget",
            method=method, memory_budget=limit,
        )  # fmt: skip

    def test_too_few_exemplars(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr("edgecil.engine.increment.train", _no_training)
        refused(
            BudgetError, tmp_path / ".edgecil", folder, code=3, says="budget of 1 exemplars",
            hint="--exemplars-total 2", method="icarl", exemplars_total=1,
        )  # fmt: skip

    def test_an_inherited_budget_that_more_classes_outgrow(self, folder, folders, tmp_path):
        root = tmp_path / ".edgecil"
        learn(folders[0], root, method="rehearsal", exemplars_total=3)
        refused(BudgetError, root, folder, code=3, says="3 exemplars leaves none for each of 4")

    @pytest.mark.parametrize("method", ["icarl", "rehearsal", "bic"])
    def test_one_that_shrinks_holds_and_one_too_small_is_refused_before_training(
        self, method, folders, tmp_path, monkeypatch
    ):
        root = tmp_path / ".edgecil"
        learn(folders[0], root, method=method, memory_budget=30_000)
        result = learn(folders[1], root, memory_budget=14_000)
        file = root / "versions" / "2" / "memory.safetensors"
        assert file.stat().st_size == result.manifest.kept["bytes"] <= 14_000
        monkeypatch.setattr("edgecil.engine.increment.train", _no_training)
        refused(
            BudgetError, root, folders[2], code=3, says=[method, "6 classes"],
            hint="--memory-budget", memory_budget=500,
        )  # fmt: skip

    def test_a_method_that_keeps_nothing_passes_with_zero(self, folder, tmp_path):
        result = learn(folder, tmp_path / ".edgecil", method="lwm", memory_budget=0)
        assert result.manifest.kept["bytes"] == 0

    def test_joint_takes_no_budget(self, folder, tmp_path):
        refused(
            UsageError, tmp_path / ".edgecil", folder, code=2, says="takes no budget",
            method="joint", memory_budget=10**6,
        )  # fmt: skip


def _no_training(*arguments, **settings):
    pytest.fail("the refusal must come before training")


class TestTraining:
    def test_a_loss_that_diverges_names_its_term(self, root, folder):
        method = "lwf" if not root.exists() else "lwm"
        refused(
            TrainingError, root, folder, code=1, says=["classification", "last good version"],
            hint="--lr", lr=1e20, epochs=3, batch_size=2, method=method,
        )  # fmt: skip
        Workspace(root).refuse_unfinished()

    def test_weights_that_diverge_in_the_last_step_are_found(self, folder, tmp_path, monkeypatch):
        from edgecil.methods import finetune

        def step(options, ctx, batch):
            terms = real(options, ctx, batch)
            # Finite as a value, infinite as a gradient.
            bad = (ctx.net.head.weight.sum() * 0).sqrt()
            return {**terms, "bad": finetune.Term(bad)}

        real = finetune.step
        monkeypatch.setattr(finetune, "step", step)
        refused(
            TrainingError, tmp_path / ".edgecil", folder, code=1, says="head.weight",
            method="finetune",
        )  # fmt: skip


class TestAdoption:
    @pytest.mark.parametrize(
        ("before", "after", "why"),
        [
            ("lwm", "icarl", "exemplars"),
            ("lwm", "rehearsal", "exemplars"),
            ("lwf-mc", "lwf", "softmax outputs"),
            ("lwm", "lwf", "softmax outputs"),
            ("finetune", "lwf-mc", "sigmoid outputs"),
            ("finetune", "ncm", "means"),
            ("finetune", "joint", "exemplars"),
            ("rehearsal", "joint", "only copies"),
            ("ewc", "mas", "how much the outputs depend"),
            ("mas", "ewc", "Fisher information"),
        ],
    )
    def test_a_method_that_cannot_continue_says_why(
        self, before, after, why, base, folder, monkeypatch
    ):
        root = base(before)
        monkeypatch.setattr("edgecil.engine.increment.train", _no_training)
        refused(
            AdoptError, root, folder, code=1, says=[after, before, "version 1", why],
            hint="new workspace", method=after,
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("before", "after"), [("lwm", "lwf-mc"), ("finetune", "lwf"), ("joint", "rehearsal")]
    )
    def test_a_method_that_can_does(self, before, after, base, folder):
        root = base(before)
        result = learn(folder, root, method=after)
        assert (result.manifest.method, result.manifest.parent) == (after, 1)


class TestJointFiles:
    @pytest.fixture
    def joint(self, tmp_path):
        old = toys.write_folder(tmp_path / "old", range(2), count=3)
        learn(old, tmp_path / ".edgecil", method="joint")
        return old, tmp_path / ".edgecil"

    def test_a_file_that_is_gone(self, joint, folder):
        old, root = joint
        (old / "class-1" / "002.png").unlink()
        says = ["class-1/002.png", "No such file"]
        refused(DataError, root, folder, code=1, says=says, hint="put the file back")

    def test_a_file_that_changed(self, joint, folder):
        old, root = joint
        Image.new("RGB", (32, 32)).save(old / "class-0" / "000.png")
        refused(DataError, root, folder, code=1, says=["class-0/000.png", "changed"])


class TestTestImages:
    """What is wrong with test images is said before hours of training, not after them."""

    @pytest.fixture(autouse=True)
    def untrained(self, monkeypatch):
        monkeypatch.setattr("edgecil.engine.increment.train", _no_training)

    def test_no_folder(self, root, folder, tmp_path):
        where = tmp_path / "tests"
        refused(DataError, root, folder, code=1, says=str(where), test_data=where)

    def test_a_damaged_image(self, root, folder, tmp_path):
        tests = toys.write_folder(tmp_path / "tests", range(2, 4), count=2, seed=1)
        bad = tests / "class-3" / "000.png"
        bad.write_bytes(b"")
        refused(DataError, root, folder, code=1, says=str(bad), test_data=tests)

    def test_other_classes_only(self, root, folder, tmp_path):
        tests = toys.write_folder(tmp_path / "tests", [8], count=2)
        refused(DataError, root, folder, code=1, says="class-8", test_data=tests)


class TestDamagedWorkspace:
    """A damaged or newer workspace stops learning, evaluation, report and export alike."""

    @pytest.fixture
    def icarl(self, bases):
        return bases("icarl")

    def every_command(self, root, folder):
        yield lambda: learn(folder, root)
        yield lambda: api.plan(folder, workspace=root)
        yield lambda: api.evaluate(folder, workspace=root, ignore_unknown=True)
        yield lambda: api.predict([next(folder.glob("*/*.png"))], workspace=root)

    @pytest.mark.parametrize("name", ["weights.safetensors", "memory.safetensors"])
    @pytest.mark.parametrize("place", [3, -1])
    def test_one_bit(self, name, place, icarl, folder, tmp_path):
        root = small_runs.copied(icarl, tmp_path / ".edgecil")
        path = root / "versions" / "1" / name
        data = bytearray(path.read_bytes())
        data[place] ^= 4
        path.write_bytes(data)
        before = tree(root)
        for command in self.every_command(root, folder):
            with pytest.raises(WorkspaceError, match=f"{name} is damaged"):
                command()
        assert tree(root) == before

    @pytest.mark.parametrize("change", [{"schema": 2}, {"extra": 1}, None])
    def test_manifest(self, change, icarl, folder, tmp_path):
        root = small_runs.copied(icarl, tmp_path / ".edgecil")
        path = root / "versions" / "1" / "manifest.json"
        text = path.read_text()
        path.write_text(json.dumps(json.loads(text) | change) if change else text[:-20])
        before = tree(root)
        commands = [*self.every_command(root, folder), lambda: api.report_memory(workspace=root)]
        for command in commands:
            with pytest.raises(EdgecilError, match=r"manifest\.json") as caught:
                command()
            assert caught.value.exit_code == 1
        assert tree(root) == before

    @pytest.mark.parametrize("method", ["icarl", "ewc"])
    def test_kept_memory_gone(self, method, bases, folder, tmp_path, monkeypatch):
        root = small_runs.copied(bases(method), tmp_path / ".edgecil")
        (root / "versions" / "1" / "memory.safetensors").unlink()
        monkeypatch.setattr("edgecil.engine.increment.train", _no_training)
        says = [method, "version 1", "memory.safetensors is gone"]
        refused(AdoptError, root, folder, code=1, says=says, hint="new workspace")

    def test_weights_gone(self, icarl, folder, tmp_path):
        root = small_runs.copied(icarl, tmp_path / ".edgecil")
        (root / "versions" / "1" / "weights.safetensors").unlink()
        for command in self.every_command(root, folder):
            with pytest.raises(WorkspaceError, match=r"weights\.safetensors is missing"):
                command()
