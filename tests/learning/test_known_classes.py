"""--update-known from folders to versions: labels, manifests, reports, resuming, refusals."""

from __future__ import annotations

import shutil

import pytest
import small_runs
import toys
from small_runs import learn

from edgecil import api, upkeep
from edgecil.engine import loop
from edgecil.errors import AdoptError, DataError, Interrupted, UsageError, WorkspaceError
from edgecil.memory.fields import COUNTS
from edgecil.memory.store import Store
from edgecil.versions import fields_of
from edgecil.workspace import MEMORY, Workspace


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """More images of a known class, in another spelling, and nothing else."""
    root = toys.write_folder(tmp_path_factory.mktemp("more"), [1], count=6, seed=3)
    (root / "class-1").rename(root / "CLASS-1")
    return root


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """More images of two known classes, and one new class that sorts before them."""
    root = toys.write_folder(tmp_path_factory.mktemp("mixed"), [0, 1, 5], count=6, seed=4)
    (root / "class-5").rename(root / "a-new-one")
    return root


def counts(root) -> list[int]:
    manifest = Workspace(root).manifest()
    path = Workspace(root).path(manifest.version) / MEMORY
    return Store.load(path, fields_of(manifest)).read(COUNTS).tolist()


def test_without_the_flag_the_hint_names_it(base, more):
    with pytest.raises(DataError, match="known already: CLASS-1") as caught:
        learn(more, base())
    assert "--update-known" in caught.value.hint


@pytest.mark.parametrize("method", ["lwm", "icarl"])
def test_known_classes_alone(base, more, folders, tmp_path, method):
    root = base(method)
    tests = toys.write_folder(tmp_path / "tests", range(4), count=3, seed=9)
    manifest = learn(more, root, update_known=True, test_data=tests).manifest
    assert manifest.names == ["class-0", "class-1"]
    assert (manifest.groups, manifest.increment, manifest.parent) == ((2, 0), 2, 1)
    assert [c["increment"] for c in manifest.classes] == [1, 1]
    assert manifest.training["updated"] == [{"class": 1, "images": 6}]
    assert manifest.training["new_images_per_class"] == []
    assert manifest.test["by_increment"][1] is None and manifest.test["new"] is None
    assert manifest.test["top1"] is not None
    # And on: a new class after it is of increment 3.
    manifest = learn(folders[1], root).manifest
    assert (manifest.groups, manifest.parent) == ((2, 0, 2), 2)
    assert [c["increment"] for c in manifest.classes] == [1, 1, 3, 3]
    found = api.evaluate(tests, workspace=root)
    assert found.groups == (2, 0, 2) and 0 <= found.task_aware <= 1
    assert {row.method for row in api.report_memory(workspace=root).rows} >= {"m2kd", "bic", method}
    report = api.export(workspace=root, output=tmp_path, precision="fp32")
    assert [i for _, i in report.labels] == [1, 1, 3, 3]


def test_known_and_new_classes_together(base, mixed):
    root = base("icarl")
    plan = api.plan(mixed, workspace=root, update_known=True)
    assert plan.classes_new == ("a-new-one",) and plan.classes_updated == ("class-0", "class-1")
    result = learn(mixed, root, update_known=True, val_fraction=0.34)
    manifest = result.manifest
    assert manifest.names == ["class-0", "class-1", "a-new-one"]
    assert manifest.groups == (2, 1)
    assert manifest.training["updated"] == [{"class": r, "images": 4} for r in (0, 1)]
    # Images that were held out have the labels of their classes, old and new.
    assert result.evaluation.counts.sum(axis=1).tolist() == [2, 2, 2]


def test_the_order_of_new_classes_may_be_given_and_names_new_ones_only(base, mixed):
    with pytest.raises(UsageError, match="new classes of the folder"):
        learn(mixed, base(), update_known=True, class_order=("class-0", "class-1", "a-new-one"))
    manifest = learn(mixed, base("icarl"), update_known=True, class_order=("a-new-one",)).manifest
    assert manifest.names[2:] == ["a-new-one"]


@pytest.mark.parametrize("method", ["m2kd", "bic", "ewc", "icarl+aux"])
def test_methods_that_cannot_are_refused_before_anything_is_done(base, more, bases, method):
    root = base("lwf-mc" if method == "m2kd" else "lwm")
    before = small_runs.tree(root)
    with pytest.raises(AdoptError, match=r"more images of known classes \(class-1\)") as caught:
        learn(more, root, method=method, update_known=True)
    assert "lwm" in caught.value.hint and "bic" not in caught.value.hint
    assert small_runs.tree(root) == before


def test_a_forgotten_class_comes_back_with_new_images(base, more, folders):
    root = base("icarl")
    upkeep.forget(Workspace(root), "class-1")
    assert counts(root)[1] == 0
    with pytest.raises(AdoptError, match="none are kept of class-1"):
        learn(folders[1], root)
    learn(more, root, update_known=True)
    assert counts(root)[1] == 6
    learn(folders[1], root)


@pytest.mark.parametrize("method", ["lwm", "rehearsal"])
def test_stopped_and_resumed_equals_uninterrupted(base, more, tmp_path, monkeypatch, method):
    monkeypatch.setattr(loop.Session, "__init__", small_runs.looking_often(loop.Session.__init__))
    settings = {"update_known": True, "epochs": 2, "batch_size": 4}
    root = base(method)
    other = small_runs.copied(root, tmp_path / "other" / ".edgecil")
    learn(more, root, **settings)
    asked = iter(range(100))
    with pytest.raises(Interrupted):
        learn(more, other, should_stop=lambda: next(asked) >= 1, **settings)
    manifest = api.learn(workspace=other, resume=True).manifest
    assert manifest.training["updated"] == [{"class": 1, "images": 6}]
    assert small_runs.equal(small_runs.weights(root), small_runs.weights(other))
    assert Workspace(root).read(2, MEMORY) == Workspace(other).read(2, MEMORY)


def test_a_run_of_another_version_is_not_said_to_resume(base, folders, monkeypatch):
    monkeypatch.setattr(loop.Session, "__init__", small_runs.looking_often(loop.Session.__init__))
    root = base("lwm")
    learn(folders[1], root)
    with pytest.raises(Interrupted):
        learn(folders[2], root, epochs=3, batch_size=4, should_stop=lambda: True)
    place = Workspace(root)
    assert place.waits and place.resumable
    place.rollback(1)
    assert place.waits and not place.resumable
    with pytest.raises(WorkspaceError) as caught:
        learn(folders[2], root)
    assert "--discard" in caught.value.hint and "--resume" not in caught.value.hint
    with pytest.raises(WorkspaceError, match="current version changed") as caught:
        api.learn(workspace=root, resume=True)
    assert "or first edgecil rollback 2" in caught.value.hint
    place.rollback(2)
    assert api.learn(workspace=root, resume=True).manifest.groups == (2, 2, 2)
    shutil.rmtree(root)
