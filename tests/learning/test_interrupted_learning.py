"""Stopped, killed, out of disk: the workspace holds, and a resumed run ends as if nothing was."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import small_runs
import toys
from small_runs import learn, tree

from edgecil import api
from edgecil.engine import loop
from edgecil.errors import Interrupted, UnfinishedRun, WorkspaceError
from edgecil.workspace import MEMORY, REQUEST, Workspace

LONG = {"epochs": 3, "batch_size": 4}  # 18 steps


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    """Look for a stop at every step, not five times per second."""
    init = small_runs.looking_often(loop.Session.__init__)
    monkeypatch.setattr(loop.Session, "__init__", init)


def after(calls):
    """Return a ``should_stop`` that says yes from the given call on."""
    seen = iter(range(10**6))
    return lambda: next(seen) + 1 >= calls


@pytest.fixture(scope="module")
def reference(tmp_path_factory, folders):
    """The workspace of rehearsal after two uninterrupted increments."""
    root = tmp_path_factory.mktemp("reference") / ".edgecil"
    learn(folders[0], root, method="rehearsal", **LONG)
    learn(folders[1], root, **LONG)
    return root


@pytest.fixture
def begun(reference, tmp_path):
    """The reference as it was after its first increment."""
    root = small_runs.copied(reference, tmp_path / "begun" / ".edgecil")
    place = Workspace(root)
    place.rollback(1)
    shutil.rmtree(place.path(2))
    return root


def same(root, reference):
    """Return whether version 2 of two workspaces is equal to the bit, kept memory included."""
    kept = [Workspace(r).read(2, MEMORY) for r in (root, reference)]
    weights = [small_runs.weights(r, 2) for r in (root, reference)]
    return kept[0] == kept[1] and small_runs.equal(*weights)


@pytest.mark.parametrize("steps", [1, 9, 17])
def test_stopped_and_resumed_equals_uninterrupted(steps, begun, folders, reference):
    with pytest.raises(Interrupted) as caught:
        learn(folders[1], begun, should_stop=after(steps), **LONG)
    assert caught.value.exit_code == 130
    assert "learn --resume" in caught.value.hint
    assert Workspace(begun).current() == 1
    result = api.learn(workspace=begun, resume=True)
    assert result.manifest.version == 2
    assert same(begun, reference)
    assert not Workspace(begun).run.exists()
    assert result.manifest.training["epochs"] == 3


def test_stopped_several_times(begun, folders, reference):
    with pytest.raises(Interrupted):
        learn(folders[1], begun, should_stop=after(5), **LONG)
    for calls in (3, 10, 1):
        with pytest.raises(Interrupted):
            api.learn(workspace=begun, resume=True, should_stop=after(calls))
    api.learn(workspace=begun, resume=True)
    assert same(begun, reference)


def test_a_time_limit_stops_and_resumes(begun, folders, reference):
    with pytest.raises(Interrupted):
        learn(folders[1], begun, time_limit=0.0, **LONG)
    with pytest.raises(Interrupted):
        api.learn(workspace=begun, resume=True, time_limit=0.0)
    api.learn(workspace=begun, resume=True, time_limit=3600)
    assert same(begun, reference)


def test_the_base_increment_can_be_interrupted_too(folders, tmp_path, reference):
    root = tmp_path / ".edgecil"
    with pytest.raises(Interrupted):
        learn(folders[0], root, method="rehearsal", should_stop=after(7), **LONG)
    assert not Workspace(root).exists()
    api.learn(workspace=root, resume=True)
    assert small_runs.equal(small_runs.weights(root), small_runs.weights(reference, 1))


def test_a_new_run_over_an_interrupted_one_is_refused_unless_it_is_discarded(begun, folders):
    with pytest.raises(Interrupted):
        learn(folders[1], begun, should_stop=after(5), **LONG)
    before = tree(begun)
    with pytest.raises(UnfinishedRun, match="interrupted run") as caught:
        learn(folders[2], begun)
    assert caught.value.exit_code == 1
    assert "--resume" in caught.value.hint
    assert tree(begun) == before
    result = learn(folders[2], begun, discard=True)
    assert result.manifest.names[2:] == ["class-4", "class-5"]
    assert not Workspace(begun).run.exists()


def test_a_run_does_not_go_on_with_other_images_or_from_another_version(
    begun, folders, tmp_path, reference
):
    new = toys.write_folder(tmp_path / "new", range(2, 4))
    with pytest.raises(Interrupted):
        learn(new, begun, should_stop=after(5), **LONG)
    moved = new / "class-2" / "000.png"
    moved.rename(tmp_path / "away.png")
    before = tree(begun)
    with pytest.raises(WorkspaceError, match=r"images in .* changed") as caught:
        api.learn(workspace=begun, resume=True)
    assert "--discard" in caught.value.hint
    assert tree(begun) == before
    (tmp_path / "away.png").rename(moved)
    data = small_runs.copied(Workspace(begun).path(1), Workspace(begun).path(3))
    manifest = data / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 3'))
    Workspace(begun).rollback(3)
    with pytest.raises(WorkspaceError, match="current version changed"):
        api.learn(workspace=begun, resume=True)
    Workspace(begun).rollback(1)
    shutil.rmtree(data)
    api.learn(workspace=begun, resume=True)
    assert same(begun, reference)


@pytest.mark.parametrize("name", ["request.json", "state.safetensors"])
def test_a_damaged_run_is_one_clear_error(name, begun, folders):
    with pytest.raises(Interrupted):
        learn(folders[1], begun, should_stop=after(5), **LONG)
    path = begun / "run" / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WorkspaceError, match="damaged") as caught:
        api.learn(workspace=begun, resume=True)
    assert "--discard" in caught.value.hint


@pytest.fixture(scope="module")
def children():
    """Return what starts processes in which everything is imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["small_runs"])
    with pytest.MonkeyPatch.context() as patch:
        # The server does not inherit sys.path.
        patch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
        context.Process(target=int).start()
    return context


class Child:
    """Learning ``folder`` into ``root`` in another process."""

    def __init__(self, context, root, folder, die=0):
        self.ready, self.answers = context.Event(), context.SimpleQueue()
        arguments = (root, folder, die, self.ready, self.answers, LONG)
        self.process = context.Process(target=small_runs.learn_in_child, args=arguments)
        self.process.start()

    def end(self):
        """Wait for the end and return the exit status."""
        self.process.join(timeout=120)
        return self.process.exitcode


def check_survivor(root, folders, reference):
    """Check that the workspace is good, and that the run can be ended as if nothing was."""
    place = Workspace(root)
    assert place.current() in (1, 2)
    assert api.evaluate(folders[0], workspace=root).n == 24
    for number in place.versions():
        assert place.manifest(number).version == number
    if (place.run / REQUEST).exists():
        api.learn(workspace=root, resume=True)
    elif place.current() == 1:
        learn(folders[1], root, **LONG)
    assert same(root, reference)
    assert place.versions() == [1, 2]
    left = {p.name for p in place.root.iterdir()} - {"lock"}
    assert left == {".gitignore", "current", "versions"}


# The request takes 3 calls (sync, replace, sync), the run state at the end of the phase 3, the
# commit 3 files, their folder, the rename, its folder, and 3 more for ``current``.
@pytest.mark.parametrize(
    "die",
    [
        *(2, 5, 8, 11, 12, 14, 15),
        *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 4, 6, 7, 9, 10, 13)),
    ],
)
def test_killed_in_the_commit(die, begun, folders, reference, children):
    assert Child(children, begun, folders[1], die).end() == -signal.SIGKILL
    assert Workspace(begun).current() == (2 if die == 15 else 1)
    check_survivor(begun, folders, reference)


@pytest.mark.parametrize(
    "number", [0, 1, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 16))]
)
def test_killed_at_a_random_moment(number, begun, folders, reference, children):
    child = Child(children, begun, folders[1])
    assert child.ready.wait(60)
    time.sleep(random.Random(number).uniform(0.0, 0.8))
    child.process.kill()
    child.end()
    check_survivor(begun, folders, reference)


def test_two_processes_learn_at_once_and_one_is_told(begun, folders, reference, children):
    with Workspace(begun).locked():
        child = Child(children, begun, folders[1])
        assert child.end() == 0
    assert "another edgecil process is writing" in child.answers.get()
    learn(folders[1], begun, **LONG)
    assert same(begun, reference)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB, which is full soon."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(where)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


# Written one after the other: nearly nothing, 608 kB, 305 kB and 99 kB.
@pytest.mark.parametrize(
    "room", [0, 100_000, 720_000, 960_000], ids=["request", "state", "weights", "memory"]
)
def test_a_full_disk_leaves_the_last_version_current(room, small_disk, begun, folders, reference):
    root = small_runs.copied(begun, small_disk / ".edgecil")
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - room)))
    before = tree(root / "versions")
    with pytest.raises(WorkspaceError, match="No space left"):
        learn(folders[1], root, **LONG)
    assert Workspace(root).current() == 1
    assert tree(root / "versions") == before
    (small_disk / "filler").unlink()
    check_survivor(root, folders, reference)
