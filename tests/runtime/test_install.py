"""Installing as a fleet does it: every step can fail, the power can go, the disk can be full."""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import util
from pathlib import Path

import numpy as np
import pytest

from edgecil_runtime import cli
from edgecil_runtime.bundle import MODEL
from edgecil_runtime.classifier import Classifier
from edgecil_runtime.errors import BundleError, InputError, MemoryLimitError, UpdateError
from edgecil_runtime.install import install
from edgecil_runtime.slots import Slots

DEVICES = Path(__file__).parents[2] / "devices"


@pytest.fixture(scope="module")
def toys():
    """The builders of conftest, for fixtures of a whole module."""
    spec = util.spec_from_file_location("toy_bundles", Path(__file__).with_name("conftest.py"))
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bundles(toys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {v: toys.colour_bundle(folder, version=v, parent=v - 1) for v in (1, 2, 3)}


@pytest.fixture(scope="module")
def first(bundles, tmp_path_factory):
    """A device with version 1; not to be changed."""
    root = tmp_path_factory.mktemp("first") / "device"
    install(bundles[1], root)
    return root


@pytest.fixture
def root(first, tmp_path):
    return shutil.copytree(first, tmp_path / "device")


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@dataclass(frozen=True)
class Answer:
    returncode: int
    stdout: str
    stderr: str


def run(*words, extra=None):
    """Call the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    before = dict(os.environ)
    os.environ.update({name: str(value) for name, value in (extra or {}).items()})
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main([str(word) for word in words])
    finally:
        os.environ.clear()
        os.environ.update(before)
    return Answer(code, out.getvalue(), err.getvalue())


def test_commands_from_install_to_rollback(bundles, tmp_path):
    root = tmp_path / "my device"
    at = ("--root", root)
    done = run("status", *at)
    assert done.returncode == 0 and "nothing is installed" in done.stdout
    done = run("install", bundles[1], *at)
    assert done.stdout.splitlines()[0] == "installed toy-v1"
    assert "self-test passed" in done.stderr
    done = run(
        "install", bundles[2], "--trial", "--json", "-q", extra={"EDGECIL_DEVICE_ROOT": root}
    )
    assert done.stderr == ""
    assert json.loads(done.stdout)["result"] == {
        "bundle": "toy-v2", "path": f"{root}/b/toy-v2", "root": str(root), "replaced": "toy-v1",
        "trial": True, "changed": True,
    }  # fmt: skip
    done = run("install", bundles[3], *at)
    assert done.returncode == 1 and "on trial" in done.stderr
    done = run("status", *at)
    assert "version 2 in slot b, intact, on trial, start 0 of 3" in done.stdout
    assert done.stdout.isascii() and max(map(len, done.stdout.splitlines()[:2])) <= 80
    assert run("commit", *at).stdout == "toy-v2 is committed\n"
    assert "restart the app" in run("rollback", *at).stdout
    result = json.loads(run("status", "--json", *at).stdout)["result"]
    assert result["current"]["version"] == 1 and result["previous"] is None
    events = [entry["event"] for entry in result["history"]]
    assert events == ["installed", "installed on trial", "committed", "rolled back"]
    done = run("rollback", *at)
    assert done.returncode == 1 and done.stderr.count("\n") == 2


def test_texts_of_the_remaining_outcomes(bundles, root):
    done = run("install", bundles[2], "--trial", "--root", root)
    assert "on trial for 3 starts" in done.stdout and "edgecil-device commit" in done.stdout
    done = run("install", bundles[2], "--root", root)
    assert done.returncode == 0 and "nothing was changed" in done.stdout
    (root / "a" / "toy-v1" / MODEL).unlink()
    done = run("status", "--root", root)
    assert "previous  toy version 1 in slot a, DAMAGED" in done.stdout


def test_a_reinstall_repairs_a_damaged_version(bundles, root):
    assert not install(bundles[1], root).changed
    (root / "a" / "toy-v1" / MODEL).write_bytes(b"damaged")
    assert install(bundles[1], root).changed
    assert files_of(Slots(root).current_path()) == files_of(bundles[1])


def test_what_would_surprise_needs_force(bundles, root, toys, tmp_path):
    other = toys.colour_bundle(tmp_path, name="cats", version=9)
    fewer = toys.make_bundle(
        tmp_path / "fewer", toys.colour_model(), ("red", "green", "yellow"), 8, 8,
        selftest=toys.colour_selftest(), version=4,
    )  # fmt: skip
    install(bundles[2], root)
    for bundle, words in (
        (bundles[1], "toy-v1 is older"),
        (other, "cats-v9 is another model"),
        (fewer, "toy-v4 lacks 1 of its classes, such as 'blue'"),
    ):
        with pytest.raises(UpdateError, match=words) as error:
            install(bundle, root)
        assert "--force" in error.value.hint
        assert Slots(root).state().previous, "the way back is kept until something is written"
    assert install(fewer, root, force=True).revision.version == 4
    assert install(other, root, force=True).revision.name == "cats"
    (root / "b" / "cats-v9" / MODEL).unlink(missing_ok=True)


def test_a_damaged_installed_version_does_not_stand_in_the_way(bundles, root):
    (root / "a" / "toy-v1" / MODEL).unlink()
    assert install(bundles[2], root).revision.version == 2


def test_no_bundle_no_install(root, tmp_path):
    (tmp_path / "text").write_text("no delta")
    for path in (tmp_path / "nowhere", tmp_path / "text", tmp_path):
        with pytest.raises(InputError):
            install(path, root)
    assert Slots(root).state().revision.version == 1


@pytest.fixture
def wrong_scores(toys, tmp_path):
    test = toys.colour_selftest()
    wrong = test._replace(scores=test.scores[::-1].copy())
    return toys.colour_bundle(tmp_path / "wrong", version=7, selftest=wrong)


def check_refused(root, error, words, bundle, **options):
    """A failed install leaves version 1, no way back, nothing half-written, and a note."""
    with pytest.raises(error, match=words):
        install(bundle, root, **options)
    slots = Slots(root)
    state = slots.state()
    assert state.revision.version == 1 and state.previous is None
    assert state.history[-1]["event"] == "failed"
    assert sorted(p.name for p in root.iterdir()) == ["a", "lock", "state.json"]
    assert slots.open().manifest.version == 1


def test_a_failed_selftest_changes_nothing(root, wrong_scores):
    check_refused(root, BundleError, "self-test image 0", wrong_scores)
    assert "self-test image 0" in Slots(root).state().history[-1]["detail"]


def test_too_little_memory_for_the_selftest(root, bundles):
    check_refused(root, MemoryLimitError, "needs", bundles[2], memory_limit="50MB")


def test_a_selftest_that_hangs_or_dies(root, bundles, tmp_path, monkeypatch):
    check_refused(root, BundleError, "no answer in 0.01 s", bundles[2], deadline=0.01)
    for script, words in (
        ("kill -ILL $$", "self-test: its process died of SIGILL"),
        ("echo first >&2; echo the reason >&2; exit 5", "self-test: the reason"),
    ):
        interpreter = tmp_path / "python"
        interpreter.write_text(f"#!/bin/sh\n{script}\n")
        interpreter.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(interpreter))
        check_refused(root, BundleError, words, bundles[2])


def test_a_bundle_that_changes_while_it_is_copied(root, bundles, tmp_path, monkeypatch):
    source = shutil.copytree(bundles[2], tmp_path / "toy-v2")
    copy = shutil.copyfile

    def exchanging(one, other):
        if Path(one).parent == source:
            shutil.copytree(bundles[3], source, dirs_exist_ok=True, copy_function=copy)
        return copy(one, other)

    monkeypatch.setattr(shutil, "copyfile", exchanging)
    check_refused(root, BundleError, "changed while it was copied", source)


def test_too_little_space_is_said_before_anything_is_written(root, bundles, monkeypatch):
    before = files_of(root / "a" / "toy-v1"), (root / "state.json").read_bytes()
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=900_000))
    with pytest.raises(UpdateError, match=r"needs 1\.0 MB, 0\.9 MB are free"):
        install(bundles[2], root)
    assert before == (files_of(root / "a" / "toy-v1"), (root / "state.json").read_bytes())
    assert not (root / "b").exists()


def test_everything_is_on_the_disk_before_the_switch(root, bundles, monkeypatch):
    log = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        log.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def replaced(old, new):
        log.append(("replace", str(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    install(bundles[2], root)
    switch = max(i for i, entry in enumerate(log) if entry == ("replace", f"{root}/state.json"))
    synced_before = {path for what, path in log[:switch] if what == "fsync"}
    slot = root / "b"
    assert {str(p) for p in (root, slot, *slot.rglob("*"))} <= synced_before
    assert log[switch + 1 :] == [("fsync", str(root))]


def test_an_app_keeps_its_model_while_both_slots_are_written(root, bundles):
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    app = Slots(root).open()
    install(bundles[2], root)
    install(bundles[3], root)
    assert app.manifest.version == 1 and app.predict(red).label == "red"
    assert Slots(root).open().manifest.version == 3


def limited_install(bundle, root, bytes_per_file):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_per_file, bytes_per_file))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    return subprocess.run(
        [sys.executable, "-m", "edgecil_runtime", "install", bundle, "--root", root],
        capture_output=True, text=True, timeout=120, preexec_fn=limit,
        env={**os.environ, "PYTHONPATH": str(DEVICES)},
    )  # fmt: skip


def test_a_disk_that_is_full_in_the_middle(root, bundles):
    largest = max(map(len, files_of(bundles[2]).values()))
    done = limited_install(bundles[2], root, largest - 1)
    assert done.returncode == 1 and "File too large" in done.stderr
    assert Slots(root).state().revision.version == 1
    assert not (root / "b").exists()
    # Not even the state can be written: then nothing at all has changed.
    before = files_of(root / "a" / "toy-v1"), (root / "state.json").read_bytes()
    install(bundles[2], root)
    after = (root / "state.json").read_bytes()
    done = limited_install(bundles[3], root, 10)
    assert done.returncode == 1 and "File too large" in done.stderr
    assert (root / "state.json").read_bytes() == after != before[1]
    assert Slots(root).rollback().revision.version == 1
    assert files_of(root / "a" / "toy-v1") == before[0]


@pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("options", ["size=64k", "ro"])
def test_a_small_disk_and_a_read_only_one(bundles, first, tmp_path, options):
    script = (
        f"mount -t tmpfs -o size=8m none {tmp_path} && cp -r {first} {tmp_path}/device && "
        f"mount -o remount,{options} {tmp_path} && "
        f"{{ {sys.executable} -m edgecil_runtime install {bundles[2]} --root {tmp_path}/device; "
        f"{sys.executable} -m edgecil_runtime status --root {tmp_path}/device; }}"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(DEVICES)},
    )  # fmt: skip
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr.splitlines()[0]}")
    words = "are free; nothing was written" if options != "ro" else "Read-only file system"
    assert done.stderr.startswith("error: ") and words in done.stderr
    assert "toy version 1 in slot a, intact, committed" in done.stdout


# Forks, because starting Python for every operation would take a minute.
CUT_AT_EVERY_OPERATION = """
import os, shutil, sys
from edgecil_runtime.install import install
source, first, folder = sys.argv[1:]
OPERATIONS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "subprocess.Popen"}
status = cut = 1
while status:
    root = shutil.copytree(first, f"{folder}/{cut}")
    child = os.fork()
    if not child:
        left = cut
        def hook(event, args):
            global left
            if event in OPERATIONS or event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), 9)
        sys.addaudithook(hook)
        install(source, root)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -9), status
    cut += 1
"""


def check_after_power_cut(root, bundles, expected):
    """The device opens, is one of the versions to the byte, and can be updated again."""
    slots = Slots(root)
    revision = slots.state().revision
    assert revision.version in expected
    path = slots.current_path()
    assert files_of(path) == files_of(bundles[revision.version])
    return revision.version


def test_power_cut_before_every_change_of_a_file(bundles, first, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CUT_AT_EVERY_OPERATION, bundles[2], first, tmp_path],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(DEVICES)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    roots = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    assert len(roots) > 10, "the hook saw the operations"
    found = [check_after_power_cut(root, bundles, (1, 2)) for root in roots]
    assert found == sorted(found) and found[0] == 1 and found[-1] == 2
    halfway = next(r for r in roots if (r / "b").exists())
    assert install(bundles[2], halfway).changed, "the rubbish of a cut is no obstacle"


def cut_at_random(bundles, root, moments, seed):
    """Kill installs of alternating versions at random moments; return how many got through."""
    draw, through = random.Random(seed), 0
    environment = {**os.environ, "PYTHONPATH": str(DEVICES)}
    start = time.monotonic()
    install(bundles[2], root, force=True)
    whole = 1.5 * (time.monotonic() - start)
    for _ in range(moments):
        before = Slots(root).state().revision.version
        after = 3 - before
        process = subprocess.Popen(
            [sys.executable, "-m", "edgecil_runtime", "install", "--force", bundles[after],
             "--root", root, "-q"],
            stdout=subprocess.DEVNULL, env=environment, start_new_session=True,
        )  # fmt: skip
        time.sleep(draw.uniform(0, whole))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        version = check_after_power_cut(root, bundles, (before, after))
        through += version == after
        Classifier(Slots(root).current_path()).selftest()
    return through


def test_power_cut_at_random_moments(bundles, root):
    cut_at_random(bundles, root, moments=10, seed=0)
    assert install(bundles[3], root).revision.version == 3


@pytest.mark.slow
def test_power_cut_at_two_hundred_random_moments(bundles, root):
    through = cut_at_random(bundles, root, moments=200, seed=1)
    assert 10 <= through <= 190, "the moments lay before and after the switch"
    assert install(bundles[3], root).revision.version == 3
    assert sorted(p.name for p in root.iterdir()) == ["a", "b", "lock", "state.json"]
