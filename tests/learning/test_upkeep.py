"""gc, forget and rename: what they remove, what stays, and what a kill at any moment leaves."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import small_runs
import toys
from PIL import Image

from edgecil import api, upkeep
from edgecil.errors import AdoptError, DataError, UnfinishedRun, UsageError, WorkspaceError
from edgecil.memory.fields import COUNTS, IMAGES
from edgecil.memory.store import Store
from edgecil.versions import fields_of
from edgecil.workspace import MEMORY, REQUEST, WEIGHTS, Workspace


@pytest.fixture(scope="session")
def taught(tmp_path_factory, folders):
    """A workspace of three versions: two classes each, iCaRL with three exemplars a class."""
    root = tmp_path_factory.mktemp("upkeep") / ".edgecil"
    for folder in folders:
        small_runs.learn(folder, root, method="icarl", exemplars_per_class=3)
    return root


@pytest.fixture
def place(taught, tmp_path):
    return Workspace(small_runs.copied(taught, tmp_path / ".edgecil"))


def kept(place: Workspace, version: int) -> Store:
    fields = fields_of(place.manifest(version))
    return Store.load(place.path(version) / MEMORY, fields)


def counts(place: Workspace) -> dict[int, list[int]]:
    """Return the number of kept images of every class by version; checks the hashes."""
    found = {}
    for version in place.versions():
        if place.read(version, MEMORY) is not None:
            found[version] = kept(place, version).read(COUNTS).tolist()
    return found


def killed(action, at: int) -> bool:
    """Run ``action`` in a child that is killed before its ``at``-th change of the disk."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    seen = 0

    def counted(real):
        def call(*arguments, **names):
            nonlocal seen
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **names)

        return call

    for name in ("fsync", "rename", "replace", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    try:
        action()
    finally:
        os._exit(0)


def every_kill(taught, tmp_path, action):
    """Yield the workspace after ``action`` was killed before each of its changes of the disk."""
    for at in range(1, 200):
        place = Workspace(small_runs.copied(taught, tmp_path / str(at) / ".edgecil"))
        if not killed(lambda place=place: action(place), at):
            assert at > 5
            return
        yield place


def trial(place: Workspace, file: Path) -> dict[int, int]:
    """Return in which versions a file would be forgotten."""
    try:
        return upkeep.forget(place, str(file), trial=True)
    except DataError:
        return {}


class TestForget:
    def test_a_class_leaves_every_version_and_is_recorded(self, place):
        assert counts(place) == {2: [3] * 4, 3: [3] * 6}
        weights = {v: place.read(v, WEIGHTS) for v in place.versions()}
        before = {v: kept(place, v) for v in (2, 3)}
        assert upkeep.forget(place, "class-1") == {2: 3, 3: 3}
        assert counts(place) == {2: [3, 0, 3, 3], 3: [3, 0, 3, 3, 3, 3]}
        for version in (2, 3):
            left = np.delete(before[version].read(IMAGES), slice(3, 6), axis=0)
            assert np.array_equal(kept(place, version).read(IMAGES), left)
            manifest = place.manifest(version)
            size = (place.path(version) / MEMORY).stat().st_size
            assert (
                manifest.kept["bytes"] == size == sum(f["bytes"] for f in manifest.kept["fields"])
            )
            (record,) = manifest.forgotten
            assert (record["what"], record["images"]) == ("class class-1", 3)
            assert record["when"].startswith("20") and record["by"]
        assert {v: place.read(v, WEIGHTS) for v in place.versions()} == weights
        assert place.manifest().names[1] == "class-1"

    def test_no_byte_of_the_images_stays_in_the_workspace(self, place):
        items = kept(place, 3).items(IMAGES)
        upkeep.forget(place, "class-0")
        content = b"".join(p.read_bytes() for p in place.root.rglob("*") if p.is_file())
        assert not [item for item in items[:3] if item in content]
        assert all(item in content for item in items[3:])

    def test_one_image_by_its_file(self, place, folders):
        stored = {image.tobytes() for image in kept(place, 3).read(IMAGES)[:3]}
        files = sorted((folders[0] / "class-0").glob("*.png"))
        (chosen, *_) = [f for f in files if np.asarray(Image.open(f)).tobytes() in stored]
        assert upkeep.forget(place, str(chosen)) == {2: 1, 3: 1}
        assert counts(place) == {2: [2, 3, 3, 3], 3: [2, 3, 3, 3, 3, 3]}
        with pytest.raises(DataError, match="no version keeps an image of"):
            upkeep.forget(place, str(chosen))
        text = (place.path(3) / "manifest.json").read_text()
        assert "image with SHA-256" in text and chosen.name not in text

    @pytest.mark.parametrize(
        "changes",
        [
            [{"codec": "jpeg-60"}, {}],
            [{"exemplar_size": 20}, {"codec": "png"}],
            [{}, {"codec": "jpeg-80", "exemplar_size": 16}],
        ],
    )
    def test_a_file_is_found_where_it_was_encoded_again(self, folders, tmp_path, changes):
        """The second version is older than its images are: nothing is kept of the first."""
        root = tmp_path / ".edgecil"
        first = {"method": "rehearsal", "exemplars_per_class": 2, "codec": "jpeg-75"}
        for folder, settings in zip(folders, [first, *changes], strict=True):
            small_runs.learn(folder, root, **settings)
        place = Workspace(root)
        before = counts(place)
        assert set(before) == {2, 3}
        gone = [
            upkeep.forget(place, str(file))
            for file in sorted((folders[0] / "class-0").glob("*.png"))
            if trial(place, file)
        ]
        assert gone == [{2: 1, 3: 1}] * 2
        assert counts(place) == {version: [0, *found[1:]] for version, found in before.items()}

    def test_trained_pixels_are_no_image_of_a_file(self, place, folders):
        """Version 3 is older than the images of version 4, whose pixels were trained."""
        options = {"mode": "prototype", "outer_epochs": 1, "pixel_lr": 0.5, "exemplar_epochs": 0}
        more = toys.write_folder(folders[0].parent / "trained", [8, 9])
        small_runs.learn(more, place.root, method="icarl+mnemonics", options=options)
        before = small_runs.tree(place.root)
        for folder in (folders[0], more):
            file = next(iter(sorted(folder.rglob("*.png"))))
            with pytest.raises(DataError, match="in version 4 were trained") as caught:
                upkeep.forget(place, str(file))
            assert "edgecil forget CLASS" in caught.value.hint
        assert small_runs.tree(place.root) == before
        assert upkeep.forget(place, "class-8") == {4: 3}

    def test_references_are_forgotten_without_the_files(self, folders, base):
        root = base("joint")
        place = Workspace(root)
        names = list(folders[0].rglob("*.png"))
        assert upkeep.forget(place, str(names[0])) == {1: 1}
        assert upkeep.forget(place, "class-1")[1] in (11, 12)
        assert names[0].exists()

    @pytest.mark.parametrize(("new", "why"), [("class-0 ", "is called"), (" ", "is no name")])
    def test_a_new_name_is_another_one_and_has_no_blanks_around_it(self, place, new, why):
        with pytest.raises(UsageError, match=why):
            upkeep.rename(place, "class-0", new)
        assert upkeep.rename(place, "class-0", " zebra ").names[0] == "zebra"

    def test_a_renamed_class_is_found_by_either_name_in_every_version(self, place):
        upkeep.rename(place, "class-0", "zebra")
        assert upkeep.forget(place, "zebra") == {2: 3, 3: 3, 4: 3}
        upkeep.rename(place, "class-1", "yak")
        assert set(upkeep.forget(place, "class-1")) == {2, 3, 4, 5}

    def test_when_nothing_is_left_there_is_no_file(self, place):
        for label in range(6):
            upkeep.forget(place, f"class-{label}")
        assert counts(place) == {}
        assert place.manifest().kept["bytes"] == 0
        assert len(place.manifest().forgotten) == 6
        api.report_memory(workspace=place.root)

    def test_replay_of_a_forgotten_class_is_refused_and_others_continue(self, place, folders):
        upkeep.forget(place, "class-1")
        more = folders[0].parent / "more"
        (more / "class-9").mkdir(parents=True, exist_ok=True)
        for path in (folders[2] / "class-4").glob("*.png"):
            Image.open(path).save(more / "class-9" / path.name)
        with pytest.raises(AdoptError, match="none are kept of class-1") as caught:
            api.plan(more, workspace=place.root, epochs=1)
        assert "lwf-mc" in caught.value.hint
        small_runs.learn(more, place.root, method="lwf-mc")

    def test_what_is_unknown_changes_nothing(self, place, tmp_path):
        before = small_runs.tree(place.root)
        with pytest.raises(UsageError, match="neither a class nor a file") as caught:
            upkeep.forget(place, "clas-1")
        assert "class-1" in caught.value.hint
        Image.new("RGB", (40, 30)).save(tmp_path / "strange.png")
        with pytest.raises(DataError, match="no version keeps"):
            upkeep.forget(place, str(tmp_path / "strange.png"))
        place.run.mkdir()
        (place.run / REQUEST).write_text("{}")
        with pytest.raises(UnfinishedRun):
            upkeep.forget(place, "class-1")
        place.discard_run()
        assert small_runs.tree(place.root) == before

    def test_a_kill_at_any_moment_leaves_all_or_nothing(self, taught, tmp_path):
        ends = set()
        for place in every_kill(taught, tmp_path, lambda p: upkeep.forget(p, "class-1")):
            now = counts(place)  # every version can be read at once, without a repair
            for version, found in now.items():
                assert found[1] in (0, 3), version
            with place.locked():
                pass
            after = counts(place)
            ends.add(tuple(found[1] for found in after.values()))
            assert set(after) == {2, 3} and not (place.root / "forget").exists()
            assert not list(place.root.glob(".new-*"))
            recorded = {v: bool(place.manifest(v).forgotten) for v in after}
            assert recorded == {v: found[1] == 0 for v, found in after.items()}
        assert ends == {(0, 0), (3, 3)}


class TestGc:
    def test_current_and_its_parent_stay(self, place):
        size = (place.path(1) / WEIGHTS).stat().st_size
        assert upkeep.unneeded(place) == {1: size}
        assert upkeep.collect(place) == {1: size}
        assert not place.complete(1) and place.complete(2) and place.complete(3)
        assert upkeep.collect(place) == {}
        assert place.manifest(1).names == ["class-0", "class-1"] and place.next_version() == 4
        with pytest.raises(WorkspaceError, match="removed by edgecil gc"):
            place.rollback(1)
        assert place.rollback() == 2
        api.report_memory(workspace=place.root)

    def test_versions_off_the_line_go_and_the_current_one_never(self, place):
        place.rollback(1)
        assert set(upkeep.collect(place, keep=1)) == {2, 3}
        assert place.complete(1) and place.current() == 1
        with pytest.raises(UsageError, match="at least 1"):
            upkeep.collect(place, keep=0)

    def test_what_an_interrupted_run_continues_from_stays(self, place):
        place.run.mkdir()
        (place.run / REQUEST).write_text('{"version": 4, "parent": 1}')
        assert upkeep.collect(place) == {}

    def test_a_kill_at_any_moment_leaves_what_is_needed(self, taught, tmp_path):
        rounds = 0
        for at in range(1, 9):
            place = Workspace(small_runs.copied(taught, tmp_path / str(at) / ".edgecil"))
            rounds += killed(lambda place=place: upkeep.collect(place, keep=1), at)
            assert place.complete(3) and counts(place)[3] == [3] * 6
            upkeep.collect(place, keep=1)
            assert [place.complete(v) for v in (1, 2, 3)] == [False, False, True]
        assert rounds >= 2

    def test_without_a_workspace(self, tmp_path):
        with pytest.raises(WorkspaceError, match="no workspace"):
            upkeep.collect(Workspace(tmp_path / "none"))
        assert not (tmp_path / "none").exists()


class TestRename:
    def test_a_new_version_comes_after_the_old_and_is_no_increment(self, place):
        before = place.manifest()
        memory = place.read(3, MEMORY)
        bytes_before = [row.kept_bytes for row in api.report_memory(workspace=place.root).rows]
        manifest = upkeep.rename(place, "class-2", "Zaunkönig")
        assert (manifest.version, manifest.parent, place.current()) == (4, 3, 4)
        assert manifest.names == [*before.names[:2], "Zaunkönig", *before.names[3:]]
        assert manifest.groups == before.groups
        assert place.read(4, MEMORY) == place.read(3, MEMORY) == memory
        assert place.read(4, WEIGHTS) == place.read(3, WEIGHTS)
        assert place.manifest(3).names == before.names
        rows = api.report_memory(workspace=place.root).rows
        assert [row.kept_bytes for row in rows] == bytes_before
        assert [m.version for m in place.increments(4)] == [4, 2, 1]

    def test_a_rollback_takes_the_name_back_and_gc_keeps_the_way(self, place):
        upkeep.rename(place, "class-2", "wren")
        assert set(upkeep.unneeded(place)) == {1, 2}
        assert place.rollback() == 3
        assert place.manifest().names[2] == "class-2"

    def test_the_increment_before_keeps_its_images(self, place, folders):
        upkeep.rename(place, "class-2", "wren")
        assert counts(place) == {2: [3] * 4, 3: [3] * 6, 4: [3] * 6}
        place.rollback(2)
        small_runs.learn(folders[2], place.root)
        assert counts(place)[5] == [3] * 6

    def test_labels_of_the_bundle_follow(self, place, tmp_path, folders):
        upkeep.rename(place, "class-2", "wren")
        report = api.export(workspace=place.root, output=tmp_path, precision="fp32")
        assert [name for name, _ in report.labels][2] == "wren"
        (found,) = api.predict([next(Path(folders[1]).rglob("*.png"))], workspace=place.root)
        assert "class-2" not in dict(found.best)

    def test_case_alone_may_change(self, place):
        assert upkeep.rename(place, "class-2", "Class-2").names[2] == "Class-2"

    @pytest.mark.parametrize("new", ["class-1", "CLASS-1", "", " ", "a\nb"])
    def test_bad_names_change_nothing(self, place, new):
        before = small_runs.tree(place.root)
        why = "is another class already" if "1" in new else "that is no name"
        with pytest.raises(UsageError, match=why):
            upkeep.rename(place, "class-2", new)
        with pytest.raises(UsageError, match="no class 'clas-2'"):
            upkeep.rename(place, "clas-2", "wren")
        assert small_runs.tree(place.root) == before
