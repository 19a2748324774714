"""Tables, bars and lines; colour; what a pipe gets."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess

import pytest
from rich.console import Console

from edgecil.engine.events import Note, PhaseStarted, Progress, Stage
from edgecil_cli import _progress
from edgecil_cli._errors import Failure
from edgecil_cli._output import Output, percent, plain
from edgecil_cli._tables import Column, pairs, table, wrap

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
COLUMNS = [Column("name"), Column("bytes", right=True)]


def test_a_table_that_fits_has_aligned_columns():
    lines = str(table(COLUMNS, [["añil", "5 B"], ["日本", "12 kB"]], 40)).splitlines()
    assert lines == ["name  bytes", "añil    5 B", "日本  12 kB"]


def test_a_table_that_does_not_fit_becomes_blocks_and_loses_nothing():
    text = str(table(COLUMNS, [["a", "5 B"], ["b", "12 kB"]], 8))
    assert text == "name   a\nbytes  5 B\n\nname   b\nbytes  12 kB\n"


def test_long_values_wrap_under_themselves_and_paths_stay_whole():
    path = "/a/very/long/path/that/does/not/fit/in/a/line/at/all"
    lines = str(pairs([("kept", "one two three four five six seven"), ("path", path)], 30))
    assert lines.splitlines() == [
        "kept  one two three four five",
        "      six seven",
        f"path  {path}",
    ]


def test_a_list_in_a_refusal_stays_a_list_on_a_terminal_and_is_one_line_in_a_log():
    message = (
        "w.pt does not fit resnet18:\n  missing: conv1.weight, bn1.weight\n  nearest: a for b?"
    )
    seen = {}
    for terminal in (True, False):
        output = Output("init")
        output.err = Console(
            file=io.StringIO(), force_terminal=terminal, color_system=None, width=30,
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        output.failure(Failure("usage", message, "it fits\n --arch resnet34", 2))
        seen[terminal] = output.err.file.getvalue().splitlines()
    assert seen[True] == [
        "error: w.pt does not fit",
        "resnet18:",
        "  missing: conv1.weight,",
        "    bn1.weight",
        "  nearest: a for b?",
        "hint: it fits --arch resnet34",
    ]
    assert seen[False] == [
        "error: w.pt does not fit resnet18: missing: conv1.weight, bn1.weight nearest: a for b?",
        "hint: it fits --arch resnet34",
    ]


def test_a_number_keeps_its_unit():
    assert wrap("of which gradients are 300 kB here", 26) == [
        "of which gradients are",
        "300 kB here",
    ]


def test_values_without_a_number_are_null_in_json_and_said_in_text():
    assert plain({"a": float("nan"), "b": (1, 2)}) == {"a": None, "b": [1, 2]}
    assert percent(None) == percent(float("nan")) == "not measured"
    assert percent(0.6125) == "61.3 %"


def _progress_event(step: int, **changes) -> Progress:
    values = {
        "phase": "train", "epoch": step // 10, "epochs": 20, "step": step, "steps": 200,
        "images_per_second": 1234.0, "seconds_left": 61.0,
        "terms": {"classification": 1.25, "distillation": 0.5, "attention": 0.125},
    }  # fmt: skip
    return Progress(**{**values, **changes})


def test_lines_come_once_per_epoch_and_not_before_ten_seconds(monkeypatch, capsys):
    clock = iter(range(0, 10_000, 1))
    monkeypatch.setattr(_progress.time, "monotonic", lambda: next(clock) * 0.5)
    lines = _progress.Lines(Output("learn"))
    lines(PhaseStarted("train", 0, 1, 0, 200, 640))
    for step in range(1, 201):
        lines(_progress_event(step))
    printed = capsys.readouterr().err.splitlines()
    epochs = [int(re.search(r"epoch (\d+)/20", line)[1]) for line in printed[1:]]
    assert epochs == sorted(set(epochs)) and epochs[-1] == 20
    # 200 events, half a second or more each: at most one line in ten seconds.
    assert 5 <= len(epochs) <= 11
    assert "done" in printed[-1] and "1 min 01 s left" in printed[1]


def test_lines_and_the_bar_say_how_long_a_stage_takes_once_there_is_a_pace(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    lines, bar, shown = _progress.Lines(Output("diagnose")), _progress.Bar(None), []
    for seconds, done in ((0, 1), (20, 11), (40, 21)):
        now[0], bar.event = float(seconds), Stage("synthesising images", done, 51)
        lines(bar.event)
        console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
        console.print(bar)
        shown.append(console.file.getvalue())
    printed = [line[9:] for line in capsys.readouterr().err.splitlines()]
    assert printed == [
        "synthesising images 1/51", "synthesising images 11/51  1 min 20 s left",
        "synthesising images 21/51  1 min 00 s left",
    ]  # fmt: skip
    assert "left" not in shown[0] and "1 min 00 s left" in shown[2]


def test_what_reads_no_images_has_no_rate(capsys):
    lines = _progress.Lines(Output("learn"))
    lines(PhaseStarted("synthesis", 0, 2, 0, 5000, 0))
    lines(_progress_event(200, phase="synthesis", images_per_second=0.0))
    first, last = capsys.readouterr().err.splitlines()
    assert first.endswith("synthesis: 5,000 steps") and "images" not in last


def test_lines_name_a_stage_once(capsys):
    lines = _progress.Lines(Output("learn"))
    for done in (64, 128, 192):
        lines(Stage("decoding images", done, 192))
    lines(Stage("saving"))
    printed = [line[9:] for line in capsys.readouterr().err.splitlines()]
    assert printed == ["decoding images 64/192", "saving"]


@pytest.mark.parametrize("width", [80, 40])
def test_the_bar_fits_and_says_the_most_wanted_first(width):
    bar = _progress.Bar(None)
    bar.event = _progress_event(70)
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(bar)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue()).splitlines()
    assert len(shown) == 2 and max(map(len, shown)) <= width
    assert "train" in shown[0] and "epoch 8/20" in shown[0]
    assert ("images/s" in shown[0]) == (width == 80)
    assert "classification 1.25" in shown[1]


def test_the_bar_says_that_it_is_stopping():
    class Wanted:
        wanted = True

    bar = _progress.Bar(Wanted())
    bar.event = _progress_event(70)
    console = Console(width=80, file=io.StringIO())
    console.print(bar)
    assert "stopping after this step" in console.file.getvalue()


def test_notes_are_lines_and_quiet_leaves_them_out(capsys):
    for quiet in (False, True):
        with _progress.listening(Output("learn", quiet=quiet)) as listener:
            listener(Note("it chose resnet32"))
            listener(Stage("saving"))
    assert capsys.readouterr().err.count("note: it chose resnet32\n") == 1


def test_events_are_lines_of_json(tmp_path, capsys):
    path = tmp_path / "events"
    with _progress.listening(Output("learn", quiet=True), events=path) as listener:
        listener(_progress_event(70))
        listener(Stage("saving"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["event"] for row in rows] == ["Progress", "Stage"]
    assert rows[0]["terms"]["attention"] == 0.125 and rows[0]["time"] > 0


def _on_terminal(start, *arguments, **env):
    """Return what the command writes when all its streams are a terminal."""
    ours, theirs = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    process = start(*arguments, env={"TERM": "xterm-256color", **env}, **streams)
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 4096):
            parts.append(part)
    except OSError:  # the last writer has left
        pass
    os.close(ours)
    return process.wait(), b"".join(parts).decode()


def test_no_color_and_a_pipe(start, tmp_path):
    code, coloured = _on_terminal(start, "status", "--workspace", tmp_path)
    _, plain_text = _on_terminal(start, "status", "--workspace", tmp_path, NO_COLOR="1")
    out, err = start("status", "--workspace", tmp_path).communicate()
    assert code == 1 and COLOUR.search(coloured)
    assert not COLOUR.search(plain_text) and "error:" in plain_text and "hint:" in plain_text
    assert out == "" and "\x1b" not in err and err.startswith("error: no workspace")


def test_a_reader_that_leaves_is_no_error(start, known):
    read, write = os.pipe()
    os.close(read)
    process = start("history", "--workspace", known, stdout=write)
    os.close(write)
    assert process.communicate()[1] == "" and process.returncode == 1


def test_a_full_disk_under_stdout_is_said(start, known):
    with open("/dev/full", "w") as full:
        process = start("history", "--workspace", known, stdout=full, stderr=subprocess.PIPE)
        assert "no space left" in process.communicate()[1]
    assert process.returncode == 1
