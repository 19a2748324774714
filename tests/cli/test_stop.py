"""Ctrl-C, SIGTERM and time limits: a saved run, the command that resumes it, the exit code."""

from __future__ import annotations

import os
import pty
import re
import signal
import time

import pytest

from edgecil.engine.events import PhaseStarted, Stage
from edgecil.workspace import Workspace
from edgecil_cli._stop import Stop

TRAINING = PhaseStarted("train", 0, 1, 0, 100, 640)


def _learn(first, root, epochs=120):
    return (
        "learn", "--new-data", first, "--arch", "resnet8", "--epochs", epochs,
        "--no-record-ranges", "--workspace", root,
    )  # fmt: skip


def _wait_for(stream, text):
    seen = ""
    for line in stream:
        seen += line
        if text in line:
            return seen
    raise AssertionError(seen)


def test_sigint_saves_and_the_run_resumes(start, ask, first, tmp_path):
    root = tmp_path / "a space"
    process = start(*_learn(first, root))
    _wait_for(process.stderr, "train: 24 images")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "stopping after this step" in err
    assert re.search(r"error: stopped in (epoch|step) \d+ of 120; the run is saved\n", err), err
    assert f"hint: edgecil learn --resume --workspace '{root}'" in err
    assert (root / "run" / "state.safetensors").exists() and not (root / "current").exists()
    answer = ask("learn", "--resume", "--workspace", root, "--json")
    assert answer.code == 0 and answer.json["result"]["version"] == 1
    assert "going on at step" in answer.err


def test_sigterm_is_143_and_json_says_so_too(start, first, tmp_path):
    process = start(*_learn(first, tmp_path, 100_000), "--json")
    _wait_for(process.stderr, "train: 24 images")
    process.terminate()
    out, _ = process.communicate()
    assert process.returncode == 143
    assert '"code": "interrupted"' in out and "edgecil learn --resume" in out


def test_control_c_on_a_terminal(start, first, tmp_path):
    """The key itself, through a terminal that is the process's own."""
    ours, theirs = pty.openpty()

    def own_terminal():
        os.setsid()
        os.close(os.open(os.ttyname(theirs), os.O_RDWR))

    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    process = start(
        *_learn(first, tmp_path, 100_000), preexec_fn=own_terminal,
        env={"TERM": "xterm", "COLUMNS": "80"}, **streams,
    )  # fmt: skip
    os.close(theirs)
    text, pressed = b"", False
    try:
        while part := os.read(ours, 4096):
            text += part
            if not pressed and b"images/s" in text:
                os.write(ours, b"\x03")
                pressed = True
    except OSError:
        pass
    os.close(ours)
    assert process.wait() == 130
    assert b"the run is saved" in text
    # The command is one line, however long, so that it can be copied.
    assert text.rstrip().endswith(f"edgecil learn --resume --workspace {tmp_path}".encode())


def test_a_time_limit_ends_with_a_run_that_resumes(interrupted):
    root, answer = interrupted
    assert answer.code == 130 and "the run is saved" in answer.err
    assert f"edgecil learn --resume --workspace {root}" in answer.err


def test_an_interrupted_run_is_in_the_way_until_resumed_or_discarded(ask, interrupted, first):
    root, _ = interrupted
    status = ask("status", "--workspace", root)
    assert status.code == 0 and "an interrupted run waits: lwm on" in status.out
    assert f"next: edgecil learn --resume --workspace {root}\n" in status.err
    for command in (["history"], ["evaluate", first]):
        refused = ask(*command, "--workspace", root)
        assert "error: no version yet: an interrupted run waits\n" in refused.err
        assert f"hint: edgecil learn --resume --workspace {root}" in refused.err
    fewer = ask("learn", "--resume", "--lr", 0.5, "--workspace", root)
    assert fewer.code == 2 and "continues the run as it began: without --lr\n" in fewer.err
    missing = ask("learn", "--discard", "--workspace", root)
    assert missing.code == 2 and "hint: edgecil learn --discard --new-data dir/" in missing.err
    tried = ask("learn", "--new-data", first, "--workspace", root, "--dry-run", "--epochs", 1)
    assert tried.code == 0 and "an interrupted run waits" in tried.err
    again = ask("learn", "--new-data", first, "--workspace", root, "--json")
    assert (again.code, again.json["error"]["code"]) == (1, "unfinished_run")
    assert "--discard" in again.json["error"]["hint"]


def test_status_of_a_damaged_run_says_so(ask, interrupted):
    root, _ = interrupted
    record = root / "run" / "request.json"
    whole = record.read_bytes()
    record.write_bytes(whole[:20])
    answer = ask("status", "--workspace", root)
    record.write_bytes(whole)
    assert answer.code == 0 and "damaged" in answer.out
    assert "edgecil learn --discard --new-data dir/" in answer.err


def test_resume_refuses_other_settings_and_names_them(ask, interrupted, first):
    root, _ = interrupted
    answer = ask("learn", "--resume", "--epochs", 5, "--workspace", root)
    assert answer.code == 2 and "as it began: with --epochs 300" in answer.err
    answer = ask("learn", "--resume", "--set", "gamma=3", "--workspace", root)
    assert answer.code == 2 and "as it began: without --set\n" in answer.err
    # What the run began with may be said again.
    answer = ask(
        "learn", "--resume", "--epochs", 300, "--new-data", first, "--workspace", root,
        "--time-limit", "0.01s",
    )  # fmt: skip
    assert answer.code == 130


def test_a_resumed_run_takes_another_budget(ask, first, tmp_path):
    answer = ask(
        "learn", "--new-data", first, "--method", "rehearsal", "--epochs", 40, "--arch", "resnet8",
        "--no-record-ranges", "--memory-budget", "20kB", "--codec", "raw",
        "--time-limit", "0.01s", "--workspace", tmp_path,
    )  # fmt: skip
    assert answer.code == 130, answer.err
    answer = ask("learn", "--resume", "--memory-budget", "30kB", "--workspace", tmp_path)
    assert answer.code == 0, answer.err
    kept = Workspace(tmp_path).manifest().kept
    assert kept["budget"]["bytes"] == 30_000 and 20_000 < kept["bytes"] <= 30_000


def test_discard_starts_over(ask, first, tmp_path, interrupted):
    import shutil

    shutil.copytree(interrupted[0], tmp_path / "w")
    answer = ask(
        "learn", "--discard", "--new-data", first, "--epochs", 1, "--arch", "resnet8",
        "--workspace", tmp_path / "w", "--no-record-ranges", "-q",
    )  # fmt: skip
    assert answer.code == 0, answer
    assert answer.out == f"{tmp_path / 'w' / 'versions' / '1'}\n"


def test_before_training_the_first_signal_ends_at_once():
    with pytest.raises(KeyboardInterrupt):
        Stop().handle(signal.SIGINT, None)


def test_while_training_the_second_signal_ends_at_once(capfd):
    stop = Stop()
    stop.watch(TRAINING)
    stop.handle(signal.SIGINT, None)
    assert stop() and "press Ctrl-C again" in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGINT, None)


def test_while_a_version_is_committed_no_signal_breaks_in():
    stop = Stop()
    stop.watch(TRAINING)
    stop.watch(Stage("saving"))
    for _ in range(3):
        stop.handle(signal.SIGINT, None)
    assert stop()


def test_the_library_announces_the_commit_in_these_words(monkeypatch, ask, first, tmp_path):
    """Signals wait from that event on: it must come before the workspace is touched."""
    from edgecil.workspace import Workspace

    told = []
    commit = Workspace.commit

    def spy(self, *arguments):
        told.append(bytes(events.read_bytes()))
        return commit(self, *arguments)

    events = tmp_path / "events"
    monkeypatch.setattr(Workspace, "commit", spy)
    answer = ask(*_learn(first, tmp_path / "w", 1), "--events", events)
    assert answer.code == 0, answer
    last = told[0].decode().splitlines()[-1]
    assert '"saving"' in last


def test_an_impatient_second_signal_loses_no_more_than_the_run(start, ask, first, tmp_path):
    process = start(*_learn(first, tmp_path, 100_000))
    _wait_for(process.stderr, "train: 24 images")
    process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and "edgecil learn --resume" in err
    assert ask("status", "--workspace", tmp_path).code == 0
