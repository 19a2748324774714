"""What a learned version says, and what the next one takes over from it."""

from __future__ import annotations

import dataclasses

import pytest
import small_runs
import toys
from small_runs import learn, tree

from edgecil import api
from edgecil.engine.events import Note, PhaseStarted, Progress
from edgecil.errors import UsageError
from edgecil.workspace import Workspace


def test_three_increments_and_what_the_manifests_say(folders, tmp_path):
    root = tmp_path / ".edgecil"
    tests = toys.write_folder(tmp_path / "tests", range(6), count=5, seed=9)
    said = []
    results = [learn(f, root, test_data=tests, listener=said.append) for f in folders]
    notes = [event.text for event in said if isinstance(event, Note)]
    left_out = [note.split("not learned: ")[1] for note in notes if "not learned" in note]
    assert left_out == ["class-2, class-3, class-4, class-5", "class-4, class-5"]
    last = results[-1].manifest
    assert last == Workspace(root).manifest()
    assert last.names == [f"class-{i}" for i in range(6)]
    assert [c["increment"] for c in last.classes] == [1, 1, 2, 2, 3, 3]
    assert [r.manifest.parent for r in results] == [None, 1, 2]
    assert last.training["new_images"] == 24
    assert last.training["seconds"] > 0
    # Test images of classes that were learned by then.
    assert [r.evaluation.n for r in results] == [10, 20, 30]
    again = api.evaluate(tests, workspace=root)
    assert again.counts.tolist() == results[-1].evaluation.counts.tolist()
    assert again.by_increment() == last.test["by_increment"]
    assert sorted(p.name for p in results[-1].path.iterdir()) == [
        "manifest.json", "weights.safetensors",
    ]  # fmt: skip
    first = api.evaluate(folders[0], workspace=root, version=1)
    assert first.labels == ("class-0", "class-1")


def test_the_peak_of_the_gpus_memory_is_recorded_and_none_without_one(
    folders, tmp_path, monkeypatch
):
    watched = []
    monkeypatch.setattr("edgecil.learning.run.watch_device", watched.append)
    for number, peak in enumerate((None, 2**30)):
        monkeypatch.setattr("edgecil.learning.record.device_peak", lambda device, peak=peak: peak)
        training = learn(folders[number], tmp_path / ".edgecil").manifest.training
        assert training["peak_device_bytes"] == peak and training["peak_rss_bytes"] > 0
    assert [device.type for device in watched] == ["cpu", "cpu"]


def test_test_folders_are_remembered_by_later_increments(folders, tmp_path):
    root = tmp_path / ".edgecil"
    for number, folder in enumerate(folders[:2]):
        labels = range(2 * number, 2 * number + 2)
        tests = toys.write_folder(tmp_path / f"tests-{number}", labels, count=3, seed=5)
        result = learn(folder, root, test_data=tests)
    assert result.evaluation.counts.sum(axis=1).tolist() == [3] * 4
    assert result.manifest.test["old"] is not None
    assert len(result.manifest.test["folders"]) == 2


def test_a_class_is_tested_on_the_last_folder_that_shows_it(folders, tmp_path):
    """Test folders of all classes so far, as most people have them, and one more class beside."""
    root, said = tmp_path / ".edgecil", []
    for number, labels in enumerate((range(2), range(1, 4))):
        tests = toys.write_folder(tmp_path / f"tests-{number}", labels, count=3 + number, seed=5)
        listener = said.append if number else lambda event: None
        result = learn(folders[number], root, test_data=tests, listener=listener)
    assert result.evaluation.counts.sum(axis=1).tolist() == [3, 4, 4, 4]
    (note,) = [e.text for e in said if isinstance(e, Note) and "not tested" in e.text]
    assert note == f"{tmp_path / 'tests-0'}: not tested on its 1 class that a later folder shows"
    exported = api.export(
        workspace=root, output=tmp_path / "bundles", precision="fp32", max_drop=100
    )
    assert exported.accuracy["all"].images == 15


def test_train_and_val_folders(tmp_path):
    toys.write_folder(tmp_path / "data" / "train", range(2), count=4)
    toys.write_folder(tmp_path / "data" / "val", range(2), count=3, seed=1)
    root = tmp_path / ".edgecil"
    result = learn(tmp_path / "data", root)
    assert result.manifest.training["new_images"] == 8
    assert result.evaluation.n == 6
    # Evaluating the same folder is on its test part, never on what was trained on.
    assert api.evaluate(tmp_path / "data", workspace=root).n == 6


def test_val_fraction_holds_images_out(folders, tmp_path):
    result = learn(folders[0], tmp_path / "a", val_fraction=0.25)
    assert result.manifest.training["new_images"] == 18
    assert result.evaluation.counts.sum(axis=1).tolist() == [3, 3]
    everything = learn(folders[0], tmp_path / "b")
    assert everything.evaluation is None
    assert everything.manifest.test is None
    assert not small_runs.equal(
        small_runs.weights(tmp_path / "a"), small_runs.weights(tmp_path / "b")
    )


def test_a_damaged_test_image_can_be_skipped(folders, tmp_path):
    tests = toys.write_folder(tmp_path / "tests", range(2), count=3, seed=1)
    (tests / "class-0" / "000.png").write_bytes(b"")
    result = learn(folders[0], tmp_path / ".edgecil", test_data=tests, skip_bad=True)
    assert result.evaluation.counts.sum(axis=1).tolist() == [2, 3]


def test_method_options_codec_and_budget_are_inherited(folders, tmp_path):
    root = tmp_path / ".edgecil"
    first = learn(
        folders[0], root, method="icarl", options={"rule": "argmax"}, codec="png",
        memory_budget=20_000,
    ).manifest  # fmt: skip
    second = learn(folders[1], root).manifest
    assert second.method == "icarl"
    assert second.options == {"rule": "argmax"}
    assert second.rule["kind"] == "argmax"
    assert second.kept["codec"] == "png"
    assert second.kept["budget"] == {"bytes": 20_000, "per_class": None, "total": None}
    assert 0 < second.kept["bytes"] <= 20_000
    # What is given wins, one budget replaces another, and the rest stays.
    options = {"reduction": "mean"}
    third = learn(folders[2], root, exemplars_per_class=2, options=options).manifest
    assert third.options == {"rule": "argmax", "reduction": "mean"}
    assert third.kept["budget"] == {"bytes": None, "per_class": 2, "total": None}
    assert third.kept["exemplars_per_class"] == 2
    assert first.kept["exemplars_per_class"] > 2


def test_options_stay_with_their_method(folders, tmp_path):
    root = tmp_path / ".edgecil"
    learn(folders[0], root, method="lwm", options={"gamma": 3.0})
    assert learn(folders[1], root, method="lwf-mc").manifest.options == {}
    # Back again: the current version has no such option any more.
    assert learn(folders[2], root, method="lwm").manifest.options == {}


def test_a_preset_is_inherited_and_another_one_replaces_its_options(folders, tmp_path):
    root = tmp_path / ".edgecil"
    first = learn(folders[0], root, method="lwf", preset="mfgr").manifest
    assert first.options["balance"] is True
    assert first.training["optim"]["lr"] == 0.01
    second = learn(folders[1], root).manifest
    assert second.training["preset"] == "mfgr"
    assert second.training["optim"]["lr"] == 0.01
    third = learn(folders[2], root, preset="abd").manifest
    assert third.options == {"ce_scope": "seen"}
    assert third.training["optim"]["lr"] == 0.1


def test_a_head_of_fixed_width_takes_no_more_classes(folders, tmp_path, monkeypatch):
    from edgecil.methods import lwf_mc

    preset = dataclasses.replace(lwf_mc.PRESETS["icarl"], head_width=3)
    monkeypatch.setattr(lwf_mc, "PRESETS", {"icarl": preset})
    root = tmp_path / ".edgecil"
    learn(folders[0], root, method="lwf-mc", preset="icarl")
    before = tree(root)
    with pytest.raises(UsageError, match=r"fixed width 3 .* no room"):
        learn(folders[1], root)
    assert tree(root) == before
    one = toys.write_folder(tmp_path / "one", [7], count=3)
    assert learn(one, root).manifest.groups == (2, 1)
    many = toys.write_folder(tmp_path / "many", range(4), count=1)
    with pytest.raises(UsageError, match="fixed width 3"):
        learn(many, tmp_path / "new" / ".edgecil", method="lwf-mc", preset="icarl")
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


def test_class_order_is_the_order_of_the_head(folders, tmp_path):
    root = tmp_path / ".edgecil"
    result = learn(folders[0], root, class_order=("class-1", "class-0"))
    assert result.manifest.names == ["class-1", "class-0"]
    (first,) = api.predict([folders[0] / "class-1" / "000.png"], workspace=root, top=1)
    evaluation = api.evaluate(folders[0], workspace=root)
    row = evaluation.counts[0]
    assert row.sum() == 12
    assert first.label in ("class-0", "class-1")


def test_predictions_are_the_labels_of_the_right_images(tmp_path):
    root = tmp_path / ".edgecil"
    folder = toys.write_folder(tmp_path / "new", range(3), count=12)
    learn(folder, root, method="finetune", epochs=12, batch_size=16)
    tests = toys.write_folder(tmp_path / "tests", range(3), count=4, seed=3)
    paths = sorted(tests.glob("*/*.png"))
    predictions = api.predict(paths, workspace=root, top=2)
    assert [p.path for p in predictions] == paths
    assert sum(p.label == p.path.parent.name for p in predictions) >= 11
    for p in predictions:
        assert len(p.best) == 2
        assert p.best[0] == (p.label, p.score)
        assert p.best[0][1] >= p.best[1][1]
    result = api.evaluate(tests, workspace=root)
    assert result.top1 == sum(p.label == p.path.parent.name for p in predictions) / 12


def test_evaluation_refuses_unknown_classes_unless_told(folders, bases):
    root = bases("lwm")
    with pytest.raises(Exception, match="does not know: class-2, class-3") as caught:
        api.evaluate(folders[1], workspace=root)
    assert caught.value.exit_code == 1
    assert "--ignore-unknown" in caught.value.hint


def test_events_go_forward(folders, tmp_path):
    events = []
    learn(folders[0], tmp_path / "w", epochs=40, batch_size=2, listener=events.append)
    (started,) = [e for e in events if isinstance(e, PhaseStarted)]
    assert (started.number, started.phases, started.step) == (0, 1, 0)
    progress = [e for e in events if isinstance(e, Progress)]
    steps = [p.step for p in progress]
    assert steps == sorted(set(steps))
    assert steps[-1] == progress[-1].steps == started.steps == 40 * 12
    assert progress[-1].epoch == progress[-1].epochs == 40
    assert progress[-1].seconds_left == 0
    assert all(p.images_per_second > 0 and p.terms for p in progress)
    assert not [e for e in events if isinstance(e, Note) and not e.text]
