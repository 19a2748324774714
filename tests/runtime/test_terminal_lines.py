"""What a person sees: whole words on a terminal, whole lines in a pipe, and a likely command."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgecil_runtime import cli

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="terminals of Linux")
DEVICES = Path(__file__).parents[2] / "devices"


def seen(width, words, stdout=None):
    """Return what a terminal of ``width`` columns is sent by the command: stderr, or all of it."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "edgecil_runtime", *map(str, words)],
        stdin=subprocess.DEVNULL, stdout=stdout or theirs, stderr=theirs,
        env={**kept, "PYTHONPATH": str(DEVICES)},
    )  # fmt: skip
    os.close(theirs)
    parts = []
    try:
        while True:
            parts.append(os.read(ours, 4096))
            if not parts[-1]:
                break
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(ours)
    process.wait(60)
    return b"".join(parts).decode().replace("\r\n", "\n")


@pytest.mark.parametrize("stdout", [None, subprocess.DEVNULL])
@pytest.mark.parametrize("width", [80, 50])
def test_errors_break_at_blanks_on_a_terminal_alone(colour, width, stdout):
    words = ["evaluate", colour, "nowhere", "--memory-limit", "10MB"]
    piped = subprocess.run(
        [sys.executable, "-m", "edgecil_runtime", *map(str, words)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(DEVICES)},
    ).stderr  # fmt: skip
    assert [line.split()[0] for line in piped.splitlines()] == ["error:", "hint:"]
    assert max(map(len, piped.splitlines())) > 80
    shown = seen(width, words, stdout)
    lines = shown.splitlines()
    assert len(lines) > 2 and max(map(len, lines)) <= width
    # What each process measures of itself differs by some pages: the words are the same.
    assert re.sub(r"\d+", "0", shown).split() == re.sub(r"\d+", "0", piped).split()
    assert not any(line.startswith(("MB", ",")) for line in lines)  # a number keeps its unit


def test_json_stays_one_line_on_a_terminal(colour):
    lines = seen(60, ["info", colour, "--json"]).splitlines()
    assert len(lines) == 1 and len(lines[0]) > 60 and json.loads(lines[0])["ok"]


def test_results_break_at_blanks_and_a_command_to_copy_does_not(tmp_path):
    root = tmp_path / ("deep" * 12)
    lines = seen(50, ["status", "--root", root]).splitlines()
    assert lines[-1] == f"next: edgecil-device install BUNDLE --root {root}"
    text = seen(40, ["doctor", tmp_path])
    wrapped = [line for line in text.splitlines() if len(line) > 40]
    assert all(len(line.split()) == 1 for line in wrapped), wrapped


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("evalute", "did you mean evaluate?"),
        ("self-test", "did you mean selftest?"),
        ("rolback", "did you mean rollback?"),
        ("frobnicate", "see: edgecil-device --help"),
        ("evil\nword", "see: edgecil-device --help"),
    ],
)
def test_a_mistyped_command_is_told_the_likely_one(capsys, word, hint):
    assert cli.main([word, "x", "y"]) == 2
    assert capsys.readouterr().err == f"error: unknown command {word!r}\nhint: {hint}\n"
    assert cli.main([word, "--json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["error"] == {
        "code": "usage",
        "message": f"unknown command {word!r}",
        "hint": hint,
    }
