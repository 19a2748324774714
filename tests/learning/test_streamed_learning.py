"""Learning from images on disk: every version is, to the bit, the one learned from memory."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import small_runs
import toys
from small_runs import learn, tree

from edgecil import api, context
from edgecil.data import resident
from edgecil.engine import loop
from edgecil.engine.events import Note, Stage
from edgecil.errors import DataError, Interrupted
from edgecil.workspace import MEMORY, WEIGHTS, Workspace

SETTINGS = {"epochs": 2, "batch_size": 7, "val_fraction": 0.2}


def files(root) -> list[bytes | None]:
    """Return the weights and the kept memory of both versions, as they are filed."""
    place = Workspace(root)
    return [place.read(version, name) for version in (1, 2) for name in (WEIGHTS, MEMORY)]


@pytest.mark.parametrize("method", ["finetune", "icarl", "lwm", "rehearsal", "lwf-coreset", "bic"])
def test_the_versions_are_those_learned_from_memory(method, folders, tmp_path):
    for name, stream in (("memory", "no"), ("disk", "yes")):
        for folder in folders[:2]:
            root = tmp_path / name / ".edgecil"
            result = learn(folder, root, method=method, stream=stream, **SETTINGS)
    assert result.evaluation.n == 4
    assert files(tmp_path / "disk" / ".edgecil") == files(tmp_path / "memory" / ".edgecil")
    assert (files(root)[3] is not None) == (method not in ("finetune", "lwm"))


@pytest.mark.parametrize("method", ["rehearsal", "lwf-coreset", "bic"])
def test_no_view_takes_streamed_images_into_memory(method, folders, tmp_path, monkeypatch):
    root, views = tmp_path / ".edgecil", []
    learn(folders[0], root, method=method, exemplars_per_class=3, **SETTINGS)
    show = context.Context.show
    monkeypatch.setattr(
        context.Context, "show", lambda ctx, images: (views.append(images), show(ctx, images))
    )
    learn(folders[1], root, stream="yes", **SETTINGS)
    assert views and all(view.on_disk for view in views)
    # Beside the file on disk there are the exemplars alone, however often they are drawn.
    for view in views:
        arrays = [part for part in view.pixels._parts if isinstance(part, np.ndarray)]
        assert sum(map(len, arrays)) <= 6


def test_stopped_and_resumed_equals_learned_from_memory(folders, tmp_path, monkeypatch):
    init = small_runs.looking_often(loop.Session.__init__)
    monkeypatch.setattr(loop.Session, "__init__", init)
    roots = tmp_path / "memory" / ".edgecil", tmp_path / "disk" / ".edgecil"
    for root in roots:
        learn(folders[0], root, method="icarl", **SETTINGS)
    learn(folders[1], roots[0], **SETTINGS)
    looks = iter(range(100))
    with pytest.raises(Interrupted):
        learn(folders[1], roots[1], stream="yes", should_stop=lambda: next(looks) == 4, **SETTINGS)
    notes = []
    api.learn(workspace=roots[1], resume=True, listener=notes.append)
    assert any(isinstance(n, Note) and "streamed from a temporary file" in n.text for n in notes)
    assert files(roots[0]) == files(roots[1])


def test_memory_that_is_short_is_noticed_without_being_told(folders, tmp_path, monkeypatch):
    needed = 24 * 32 * 32 * 3
    plans = []
    for free in (2 * needed, 2 * needed - 1):
        monkeypatch.setattr(resident, "free_host_bytes", lambda free=free: free)
        plans.append(api.plan(folders[0], workspace=tmp_path / ".edgecil", **small_runs.QUICK))
    assert [p.images_on_disk for p in plans] == [False, True]
    assert [p.image_bytes for p in plans] == [needed, needed]
    assert not (tmp_path / ".edgecil").exists()


def test_test_images_are_streamed_too(folders, tmp_path, monkeypatch):
    root = tmp_path / ".edgecil"
    learn(folders[0], root, method="finetune")
    expected = api.evaluate(folders[0], workspace=root)
    monkeypatch.setattr(resident, "free_host_bytes", lambda: 0)  # no room for a single image
    found = api.evaluate(folders[0], workspace=root)
    assert (found.counts == expected.counts).all() and found.n == 24
    notes = []
    report = api.export(
        workspace=root, output=tmp_path, precision="fp32", test_data=folders[0],
        listener=notes.append,
    )  # fmt: skip
    assert (report.accuracy["all"].images, report.accuracy["all"].fp32) == (24, expected.top1)
    assert any(isinstance(n, Note) and "streamed from a temporary file" in n.text for n in notes)
    result = learn(folders[1], root, test_data=folders[1])
    assert result.evaluation.n == 24


@pytest.mark.parametrize(
    ("when", "does", "says"),
    [
        (Note, "unlink", "No such file"),  # after the scan, before it is decoded
        (Stage, "unlink", "No such file"),
        (Stage, "touch", "changed while they were decoded"),
    ],
)
def test_images_that_change_or_go_meanwhile_are_refused(when, does, says, tmp_path):
    folder = toys.write_folder(tmp_path / "new", range(2), count=4)
    root = tmp_path / ".edgecil"

    def listener(event):
        path = folder / "class-0" / "003.png"
        if isinstance(event, when) and path.exists():
            getattr(path, does)()

    with pytest.raises(DataError, match=says) as caught:
        learn(folder, root, stream="yes", listener=listener)
    assert str(folder) in caught.value.message
    assert not root.exists()


def test_a_full_disk_leaves_nothing_behind(folders, base):
    root = base("lwm")
    before = tree(root)
    command = [
        *("-m", "edgecil_cli", "learn", "--new-data", str(folders[1])),
        *("--workspace", str(root), "--stream", "yes"),
    ]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 40 && exec "$@"', "bash", sys.executable, *command],
        capture_output=True, text=True, timeout=60, env=os.environ | {"COLUMNS": "400"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "24 decoded images need 73.7 kB (73,728 bytes) on the disk of" in done.stderr
    assert "hint: free some space" in done.stderr
    assert tree(root) == before
