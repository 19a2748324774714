"""Which of two slots counts: trial, commit, rollback, damage, and apps that hold a model."""

import fcntl
import json
import shutil

import numpy as np
import pytest

from edgecil_runtime.bundle import MODEL
from edgecil_runtime.errors import BundleError, MemoryLimitError, UpdateError
from edgecil_runtime.install import install
from edgecil_runtime.slots import MAX_ATTEMPTS, Slots, State


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Versions 1, 2 and 3 of one model, and the device directories made of them."""
    from importlib import util
    from pathlib import Path

    spec = util.spec_from_file_location("toy_bundles", Path(__file__).with_name("conftest.py"))
    toys = util.module_from_spec(spec)
    spec.loader.exec_module(toys)
    folder = tmp_path_factory.mktemp("bundles")
    return {v: toys.colour_bundle(folder, version=v, parent=v - 1) for v in (1, 2, 3)}


@pytest.fixture(scope="module")
def committed(bundles, tmp_path_factory):
    """A device with version 2, and version 1 to go back to; not to be changed."""
    root = tmp_path_factory.mktemp("committed") / "device"
    install(bundles[1], root)
    install(bundles[2], root)
    return root


@pytest.fixture(scope="module")
def on_trial(bundles, tmp_path_factory):
    """A device with version 2 on trial; not to be changed."""
    root = tmp_path_factory.mktemp("trial") / "device"
    install(bundles[1], root)
    install(bundles[2], root, trial=True)
    return root


@pytest.fixture
def slots(committed, tmp_path):
    return Slots(shutil.copytree(committed, tmp_path / "device"))


@pytest.fixture
def trial(on_trial, tmp_path):
    return Slots(shutil.copytree(on_trial, tmp_path / "device"))


def version(slots):
    return slots.state().revision.version


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_nothing_installed(tmp_path):
    slots = Slots(tmp_path / "device")
    assert slots.state() == State()
    for act in (slots.open, slots.commit, slots.rollback, slots.current_path):
        with pytest.raises(UpdateError, match="nothing is installed"):
            act()
    assert not slots.root.exists()


def test_the_root_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("EDGECIL_DEVICE_ROOT", raising=False)
    assert str(Slots().root) == "edgecil-device"
    monkeypatch.setenv("EDGECIL_DEVICE_ROOT", str(tmp_path))
    assert Slots().root == tmp_path


def test_an_app_gets_the_installed_model(slots):
    classifier = slots.open(memory_limit="400MB")
    assert classifier.manifest.version == 2
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    assert classifier.predict(red).label == "red"


def test_rollback_goes_back_once(slots):
    assert slots.rollback().revision.version == version(slots) == 1
    assert slots.open().manifest.version == 1
    with pytest.raises(UpdateError, match="no previous version"):
        slots.rollback()
    assert slots.state().history[-1]["event"] == "rolled back"


def test_rollback_to_a_damaged_version_changes_nothing(slots):
    damage(slots.root / "a" / "toy-v1" / MODEL)
    with pytest.raises(BundleError, match="SHA-256"):
        slots.rollback()
    assert version(slots) == 2


@pytest.mark.parametrize("how", ["gone", "flipped", "exchanged"])
def test_a_damaged_current_version_is_left_for_the_previous_one(slots, bundles, how):
    current = slots.root / "b" / "toy-v2"
    if how == "gone":
        shutil.rmtree(current)
    elif how == "flipped":
        damage(current / MODEL)
    else:  # a sound bundle, but not the one that was installed
        shutil.rmtree(current)
        shutil.copytree(bundles[3], current)
    assert slots.open().manifest.version == 1
    assert slots.state().history[-1]["event"] == "rolled back"
    damage(slots.root / "a" / "toy-v1" / MODEL)
    with pytest.raises(BundleError):
        slots.open()
    assert version(slots) == 1


def test_a_memory_limit_of_the_app_is_no_damage(slots):
    with pytest.raises(MemoryLimitError):
        slots.open(memory_limit="1MB")
    assert version(slots) == 2


def test_a_trial_ends_after_some_starts(trial):
    for start in range(MAX_ATTEMPTS):
        assert trial.open().manifest.version == 2
        assert trial.state().attempts == start + 1
    assert trial.open().manifest.version == 1
    assert not trial.state().trial and trial.state().previous is None
    assert f"after {MAX_ATTEMPTS} starts" in trial.state().history[-1]["detail"]
    assert trial.open().manifest.version == 1


def test_a_commit_ends_the_trial(trial):
    trial.open()
    assert not trial.commit().trial
    before = trial.state()
    assert trial.commit() == before, "a second commit changes nothing"
    for _ in range(MAX_ATTEMPTS + 1):
        assert trial.open().manifest.version == 2
    assert trial.rollback().revision.version == 1


def unwritable(slots):
    """Make every attempt to take the lock fail, for root as well."""
    (slots.root / "lock").unlink()
    (slots.root / "lock").mkdir()


def test_starts_that_cannot_be_counted_use_the_proven_version(trial):
    unwritable(trial)
    assert trial.open().manifest.version == 1
    assert trial.state().trial and trial.state().attempts == 0


def test_a_damaged_version_where_nothing_can_be_written(slots):
    unwritable(slots)
    damage(slots.root / "b" / "toy-v2" / MODEL)
    assert slots.open().manifest.version == 1
    assert version(slots) == 2
    damage(slots.root / "a" / "toy-v1" / MODEL)
    with pytest.raises(BundleError):
        slots.open()


def test_a_state_that_changes_meanwhile_is_followed(slots, bundles, monkeypatch):
    # Between reading the state and opening the bundle, somebody installs version 3 twice over.
    before, really, reads = slots.state(), Slots.state, []
    install(bundles[3], slots.root)
    install(bundles[1], slots.root, force=True)
    monkeypatch.setattr(
        Slots, "state", lambda self: really(self) if reads else reads.append(1) or before
    )
    assert slots.open().manifest.version == 1
    assert [e["event"] for e in slots.state().history] == ["installed"] * 4


@pytest.mark.parametrize(
    "change",
    [
        lambda s: "not JSON",
        lambda s: json.dumps([]),
        lambda s: json.dumps({**s, "schema": 99}),
        lambda s: json.dumps({**s, "current": "c"}),
        lambda s: json.dumps({**s, "slots": {"a": None, "b": None}}),
        lambda s: json.dumps({**s, "attempts": -1}),
        lambda s: json.dumps({**s, "slots": {"a": None, "b": {**s["slots"]["b"], "name": "../x"}}}),
        lambda s: json.dumps({**s, "slots": {"a": None, "b": {**s["slots"]["b"], "version": "2"}}}),
        lambda s: json.dumps(s).replace(s["slots"]["a"]["manifest_sha256"], "short"),
        lambda s: json.dumps({k: v for k, v in s.items() if k != "trial"}),
    ],
)  # fmt: skip
def test_a_damaged_state_is_said_in_one_line(slots, bundles, change):
    path = slots.root / "state.json"
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(UpdateError, match=r"state\.json is damaged") as error:
        slots.open()
    assert "\n" not in error.value.message and f"rm {path}" in error.value.hint
    with pytest.raises(UpdateError):
        install(bundles[3], slots.root)
    path.unlink()
    assert install(bundles[3], slots.root).revision.version == 3


def test_one_writer_at_a_time(slots, bundles, monkeypatch):
    monkeypatch.setattr("edgecil_runtime.slots._PATIENCE", 0.05)
    with open(slots.root / "lock", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for act in (lambda: install(bundles[3], slots.root), slots.rollback):
            with pytest.raises(UpdateError, match="another process"):
                act()
    assert version(slots) == 2
    assert slots.rollback().revision.version == 1


def test_the_history_is_short(slots):
    state = slots.state()
    for i in range(50):
        state = state.noted("failed", f"toy-v{i}")
    slots.write(state)
    assert [e["bundle"] for e in slots.state().history] == [f"toy-v{i}" for i in range(30, 50)]


def test_the_first_version_has_nothing_to_try_against(bundles, tmp_path):
    report = install(bundles[1], tmp_path, trial=True)
    assert not report.trial and not Slots(tmp_path).state().trial
