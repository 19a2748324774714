"""``edgecil targets`` and ``export --target``."""

import pytest

from edgecil.exporting import targets
from edgecil_cli._options import complete_target


@pytest.mark.parametrize("width", [80, 50])
@pytest.mark.parametrize("words", [["targets"], ["targets", "jetson-orin-nano"]])
def test_the_text_fits_and_marks_what_is_not_verified(ask, monkeypatch, words, width):
    monkeypatch.setenv("COLUMNS", str(width))
    answer = ask(*words)
    assert answer.code == 0 and "~ 1.5 GB" in answer.out
    assert max(map(len, answer.out.splitlines())) <= width
    assert "next: edgecil export --target" in answer.err


def test_json_and_quiet(ask):
    rows = ask("targets", "--json").json["result"]["targets"]
    assert [row["name"] for row in rows] == targets.names()
    one = ask("targets", "rpi4", "--json").json["result"]
    assert one in rows and one["memory"] == 500_000_000 and "memory" in one["unverified"]
    assert ask("targets", "-q").out.split() == targets.names()
    assert ask("targets", "rpi4", "-q").out == "rpi4\n"


def test_unknown_targets(ask):
    for words in (["targets", "rpi-4"], ["export", "--target", "rpi-4"]):
        answer = ask(*words)
        assert answer.code == 2 and "hint: did you mean rpi4?" in answer.err


def test_names_complete_with_the_device():
    assert complete_target("rpi4") == [("rpi4", "Raspberry Pi 4")]


def test_export_for_a_target(ask, known, tmp_path, monkeypatch):
    words = ["export", "--workspace", known, "-o", tmp_path, "--max-drop", 100]
    answer = ask(*words, "--target", "rpi-zero2w")
    assert answer.code == 0, answer
    assert "of 150 MB for the whole process" in answer.out
    assert ask(*words, "--name", "b", "--target", "rpi4", "--json").json["result"]["target"] == (
        "rpi4"
    )
    monkeypatch.setattr(targets, "_COPIES", 1 << 20)
    answer = ask(*words, "--name", "c", "--target", "rpi4")
    assert answer.code == 3 and "of flash" in answer.err and not (tmp_path / "c-v2").exists()
