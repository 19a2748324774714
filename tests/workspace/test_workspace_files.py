"""The workspace on disk: atomic commits, numbers, lineage, damage, and one writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgecil.errors import UnfinishedRun, WorkspaceError
from edgecil.workspace import MANIFEST, MEMORY, REQUEST, WEIGHTS, VersionManifest, Workspace

PREPROCESS = {"size": 32, "resize": 32, "mean": [0.5] * 3, "std": [0.25] * 3}


def manifest(version: int, parent: int | None = None, **changes) -> VersionManifest:
    """Return a manifest of two classes per version up to ``version``."""
    classes = [{"name": f"c{i}", "increment": 1 + i // 2} for i in range(2 * version)]
    values = {
        "version": version, "parent": parent, "created": "2024-01-01T00:00:00+00:00",
        "method": "lwm", "options": {}, "classes": classes, "net": {"arch": "resnet8"},
        "head_kind": "sigmoid", "rule": {"kind": "argmax", "score_kind": "logits"},
        "preprocess": PREPROCESS, "classifier_bytes": 3, "kept": {"bytes": 4}, "training": {},
    }  # fmt: skip
    return VersionManifest(**(values | changes))


def commit(place: Workspace, parent: int | None = None) -> int:
    """Commit the next version, with weights and memory that name it."""
    number = place.next_version()
    files = {WEIGHTS: b"weights %d" % number, MEMORY: b"memory %d" % number}
    place.commit(manifest(number, parent), files)
    return number


def tree(root: Path) -> dict[str, bytes | None]:
    """Return every path below ``root`` and the bytes of files; the lock file aside."""
    return {
        str(p.relative_to(root)): None if p.is_dir() else p.read_bytes()
        for p in root.rglob("*")
        if p.name != "lock"
    }


@pytest.fixture
def place(tmp_path):
    return Workspace(tmp_path / ".edgecil")


@pytest.fixture
def two(place):
    """A workspace with versions 1 and 2, and an interrupted run."""
    commit(place)
    commit(place, 1)
    place.run.mkdir()
    (place.run / REQUEST).write_text('{"parent": 2}')
    return place


class Fail:
    """Makes the n-th of the calls that touch the disk fail as a full disk does."""

    CALLS = ("mkdir", "write", "fsync", "rename", "replace")

    def __init__(self, monkeypatch, at: int) -> None:
        self.at, self.seen, self.what = at, 0, ""
        real_open = open

        def counted(name, real):
            def call(*args, **kwargs):
                self.tick(name)
                return real(*args, **kwargs)

            return call

        for name in ("fsync", "rename", "replace"):
            monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
        monkeypatch.setattr(Path, "mkdir", counted("mkdir", Path.mkdir))

        def opened(path, mode="r", *args, **kwargs):
            file = real_open(path, mode, *args, **kwargs)
            if "w" in mode:
                real_write = file.write

                def write(data):
                    # Half of it reaches the disk, as when it fills up.
                    real_write(data[: len(data) // 2])
                    self.tick("write")
                    return real_write(data[len(data) // 2 :])

                return Half(file, write)
            return file

        monkeypatch.setattr("builtins.open", opened)

    def tick(self, name: str) -> None:
        self.seen += 1
        if self.seen == self.at:
            self.what = name
            raise OSError(28, "No space left on device")


class Half:
    """A file whose ``write`` is replaced."""

    def __init__(self, file, write) -> None:
        self.file, self.write = file, write

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *problem):
        return self.file.__exit__(*problem)


def test_a_commit_that_fails_anywhere_changes_nothing(two, monkeypatch):
    before = tree(two.root)
    failed = []
    for at in range(1, 100):
        with monkeypatch.context() as patch:
            fail = Fail(patch, at)
            try:
                commit(two, 2)
            except WorkspaceError as error:
                assert "No space left" in error.message
                assert error.hint
                failed.append(fail.what)
            else:
                last = fail.what
                break
        assert tree(two.root) == before, f"call {at}: {fail.what}"
        assert two.current() == 2
        assert two.next_version() == 3
    # Folder, three files, their folder, the rename and its folder, then current.
    assert failed[:1] == ["mkdir"]
    assert failed.count("write") == 4
    assert failed.count("fsync") == 6
    assert {"rename", "replace"} <= set(failed)
    # Only the very last sync, when current names the new version already, does not undo it.
    assert last == "fsync"
    assert two.current() == 3
    assert two.read(3, WEIGHTS) == b"weights 3"


def test_the_first_commit_that_fails_leaves_no_current(place, monkeypatch):
    for at in range(1, 12):
        with monkeypatch.context() as patch:
            Fail(patch, at)
            with pytest.raises(WorkspaceError):
                commit(place)
        assert not place.exists()
        assert place.versions() == []


def test_a_new_workspace_in_which_nothing_was_made_is_removed(place):
    with pytest.raises(ValueError, match="bad"), place.locked():
        assert place.root.is_dir()
        raise ValueError("bad")
    assert not place.root.exists()
    place.root.mkdir()
    with place.locked():
        pass
    assert place.root.is_dir(), "it was there before"


@pytest.mark.parametrize("current", [None, 2], ids=["before current", "after current"])
def test_a_commit_cut_off_after_the_rename_is_finished_by_the_next_writer(two, current):
    before = (two.root / "current").read_bytes()
    commit(two, 2)
    # What a kill leaves: the version is complete, the run is still there.
    two.run.mkdir()
    (two.run / REQUEST).write_text(json.dumps({"version": 3}))
    if current is None:
        (two.root / "current").write_bytes(before)
    with two.locked():
        assert two.current() == 3
        assert not two.run.exists()
    two.refuse_unfinished()


def test_leftovers_of_a_killed_writer_are_removed_by_the_next(two):
    half = two.root / "versions" / ".new-3"
    half.mkdir()
    (half / WEIGHTS).write_bytes(b"wei")
    (two.root / ".current.77.tmp").write_bytes(b"")
    assert two.versions() == [1, 2]
    with two.locked():
        pass
    assert not half.exists()
    assert not (two.root / ".current.77.tmp").exists()
    assert (two.run / REQUEST).exists(), "an interrupted run is no leftover"


def test_kept_images_stay_in_the_current_version_and_its_parent_only(place):
    for parent in (None, 1, 2):
        commit(place, parent)
    assert [place.read(n, MEMORY) for n in (1, 2, 3)] == [None, b"memory 2", b"memory 3"]
    assert place.read(1, WEIGHTS) == b"weights 1"
    place.rollback(2)
    commit(place, 2)
    assert place.lineage(4) == [4, 2, 1]
    # Version 3 is on no way back: it is neither current nor the parent.
    assert [place.read(n, MEMORY) for n in (2, 3, 4)] == [b"memory 2", None, b"memory 4"]


def test_a_renamed_class_costs_the_increment_before_no_images(place):
    """A rename makes a version of the same increment: it is no generation of kept memory."""
    for parent in (None, 1, 2):
        commit(place, parent)
    renamed = manifest(4, 3, classes=manifest(3).classes)
    place.commit(renamed, {WEIGHTS: b"weights 3", MEMORY: b"memory 3"})
    held = [number for number in place.versions() if place.read(number, MEMORY)]
    assert held == [2, 3, 4]
    assert [place.memory_gone(number) for number in place.versions()] == [True, False, False, False]
    assert commit(place, 4) == 5
    assert [n for n in place.versions() if place.read(n, MEMORY)] == [3, 4, 5]


def test_numbers_are_never_reused_after_a_rollback(place):
    commit(place)
    commit(place, 1)
    assert place.rollback() == 1
    assert place.versions() == [1, 2]
    assert commit(place, 1) == 3
    assert place.manifest().parent == 1
    assert place.lineage(3) == [3, 1]
    assert place.rollback(2) == 2, "a version left behind can be taken up again"


def test_a_rollback_that_cannot_be_made_changes_nothing(two, monkeypatch):
    before = tree(two.root)
    with pytest.raises(WorkspaceError, match=r"no version 9; there are 1, 2$"):
        two.rollback(9)
    (two.path(1) / MANIFEST).write_text("{")
    with pytest.raises(WorkspaceError, match="damaged"):
        two.rollback()
    with monkeypatch.context() as patch:
        Fail(patch, 1)
        with pytest.raises(WorkspaceError):
            two.rollback(2)
    (two.path(1) / MANIFEST).write_bytes(before[f"versions/1/{MANIFEST}"])
    assert tree(two.root) == before
    two.rollback()
    with pytest.raises(WorkspaceError, match="nothing to roll back to"):
        two.rollback()


def test_what_a_manifest_says_of_itself(place):
    commit(place)
    commit(place, 1)
    read = place.manifest()
    assert read.version == 2
    assert read.increment == 2
    assert read.groups == (2, 2)
    assert read.names == ["c0", "c1", "c2", "c3"]
    assert read.input.size == 32
    uneven = [{"name": n, "increment": i} for n, i in (("a", 1), ("b", 2), ("c", 2), ("d", 2))]
    assert manifest(1, classes=uneven).groups == (1, 3)


class TestDamage:
    """Every damaged file gives one error that names it."""

    def test_a_changed_byte_of_weights_or_memory_is_found(self, two):
        for name in (WEIGHTS, MEMORY):
            path = two.path(2) / name
            data = bytearray(path.read_bytes())
            data[3] ^= 1
            path.write_bytes(data)
            with pytest.raises(WorkspaceError, match="SHA-256") as caught:
                two.read(2, name)
            assert str(path) in caught.value.message
            assert "rollback" in caught.value.hint

    def test_a_file_that_the_manifest_does_not_name_is_refused(self, two):
        (two.path(2) / "extra").write_bytes(b"x")
        with pytest.raises(WorkspaceError, match="SHA-256"):
            two.read(2, "extra")

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "{}", '{"schema": null}', '{"schema": 1}', "\udcff", '"x"',
                 '{"schema": "x"}', '{"schema": 1, "surprise": 2}'],
    )  # fmt: skip
    def test_a_damaged_manifest(self, two, text):
        path = two.path(2) / MANIFEST
        path.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(WorkspaceError, match="damaged") as caught:
            two.manifest()
        assert str(path) in caught.value.message

    def test_a_version_without_its_manifest(self, two):
        (two.path(2) / MANIFEST).unlink()
        with pytest.raises(WorkspaceError, match="manifest"):
            two.manifest()

    @pytest.mark.parametrize("text", ["", "two", "\xff"])
    def test_a_damaged_current(self, two, text):
        (two.root / "current").write_bytes(text.encode("latin1"))
        with pytest.raises(WorkspaceError, match="current is damaged"):
            two.current()

    def test_current_names_a_version_that_is_gone(self, two):
        (two.root / "current").write_text("7\n")
        with pytest.raises(WorkspaceError, match="no version 7"):
            two.manifest()

    def test_a_newer_schema_is_named_with_what_to_do(self, two):
        path = two.path(2) / MANIFEST
        data = json.loads(path.read_text()) | {"schema": 99, "edgecil_version": "7.1", "new": 1}
        path.write_text(json.dumps(data))
        with pytest.raises(WorkspaceError, match=r"written by edgecil 7\.1 .*schema 99") as caught:
            two.manifest()
        assert "upgrade" in caught.value.hint


HOLDER = """
import sys
from pathlib import Path
from edgecil.workspace import Workspace
with Workspace(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_told_so_and_a_killed_one_does_not_block(two):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(two.root)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert child.stdout.readline() == b"held\n"
        before = tree(two.root)
        with pytest.raises(WorkspaceError, match="another edgecil") as caught, two.locked():
            pytest.fail("two writers at once")
        assert caught.value.hint
        assert tree(two.root) == before
        assert two.manifest().version == 2, "reading needs no lock"
    finally:
        child.kill()
        child.communicate()
    with two.locked():
        pass


def test_a_second_writer_in_the_same_process_is_refused_too(two):
    with two.locked(), pytest.raises(WorkspaceError, match="another"), two.locked():
        pass


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    place = Workspace(tmp_path / "file" / ".edgecil")
    with pytest.raises(WorkspaceError, match="cannot write to"), place.locked():
        pass


class TestFind:
    """``find`` looks upwards like git; what is given explicitly wins."""

    def test_explicit_before_environment_before_parents(self, tmp_path, monkeypatch):
        monkeypatch.delenv("EDGECIL_WORKSPACE", raising=False)
        deep = tmp_path / "a" / "b"
        deep.mkdir(parents=True)
        monkeypatch.chdir(deep)
        assert Workspace.find().root == deep / ".edgecil"
        (tmp_path / ".edgecil").mkdir()
        assert Workspace.find().root == tmp_path / ".edgecil"
        (tmp_path / "a" / ".edgecil").mkdir()
        assert Workspace.find().root == tmp_path / "a" / ".edgecil"
        monkeypatch.setenv("EDGECIL_WORKSPACE", str(tmp_path / "env"))
        assert Workspace.find().root == tmp_path / "env"
        assert Workspace.find("given").root == deep / "given"

    def test_without_a_version_it_says_how_to_begin(self, place):
        assert not place.exists()
        with pytest.raises(WorkspaceError, match="no workspace at") as caught:
            place.manifest()
        assert "edgecil learn" in caught.value.hint
        assert "--workspace DIR" in caught.value.hint

    def test_before_the_first_version_an_interrupted_run_is_told_with_the_way_on(self, tmp_path):
        root = tmp_path / "a space"
        (root / "run").mkdir(parents=True)
        (root / "run" / REQUEST).write_text('{"parent": null}')
        with pytest.raises(UnfinishedRun, match="no version yet: an interrupted run") as caught:
            Workspace.find(root).current()
        assert caught.value.hint.startswith(f"edgecil learn --resume --workspace '{root}'")

    def test_a_path_is_shown_without_detours_that_lead_nowhere_else(self, tmp_path):
        (tmp_path / "a").mkdir()
        assert Workspace.find(tmp_path / "a" / ".." / "b").root == tmp_path / "b"
        (tmp_path / "far" / "deep").mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / "far" / "deep")
        there = tmp_path / "link" / ".." / "b"
        assert Workspace.find(there).root == there, "behind a link it is another folder"


def test_an_unfinished_run_is_refused_with_both_ways_on(two):
    with pytest.raises(UnfinishedRun) as caught:
        two.refuse_unfinished()
    assert "--resume" in caught.value.hint
    assert "--discard" in caught.value.hint
    two.rollback(1)  # then there is one way only
    with pytest.raises(UnfinishedRun) as caught:
        two.refuse_unfinished()
    assert "--resume" not in caught.value.hint and "--discard" in caught.value.hint
    two.discard_run()
    two.refuse_unfinished()
