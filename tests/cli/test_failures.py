"""One line that says what is wrong, a hint, the exit code; and the same as JSON."""

from __future__ import annotations

import errno

import pytest

from edgecil.errors import VerificationError


@pytest.mark.parametrize(
    ("arguments", "code", "name", "hint"),
    [
        (["lern"], 2, "usage", "learn"),
        (["learn", "--epoch", 3], 2, "usage", "--epochs"),
        (["learn", "--epochs", "many"], 2, "usage", "edgecil learn --help"),
        (["learn"], 2, "usage", "--new-data"),
        (["learn", "--new-data", "FIRST", "--memory-budget", "2XB"], 2, "usage", "2MB"),
        (["learn", "--new-data", "FIRST", "--set", "gamma"], 2, "usage", "--set"),
        (["learn", "--new-data", "FIRST", "--time-limit", "soon"], 2, "usage", "45min"),
        (["learn", "--resume", "--discard"], 2, "usage", None),
        (["learn", "--new-data", "FIRST", "--method", "lwn"], 2, "usage", "lwm"),
        (["learn", "--new-data", "FIRST", "--set", "gama=1"], 2, "usage", "gamma"),
        (["learn", "--new-data", "nowhere"], 1, "bad_data", "class folders"),
        (["learn", "--resume"], 1, "bad_workspace", "--new-data"),
        (
            ["learn", "--new-data", "FIRST", "--method", "icarl", "--memory-budget", "100"],
            3, "over_budget", "--memory-budget",
        ),
        (["evaluate", "FIRST"], 1, "bad_workspace", "edgecil learn"),
        (["status"], 1, "bad_workspace", "edgecil learn"),
        (["history"], 1, "bad_workspace", "edgecil learn"),
        (["rollback"], 1, "bad_workspace", "edgecil learn"),
        (["report-memory"], 1, "bad_workspace", "edgecil learn"),
        (["export"], 1, "bad_workspace", "edgecil learn"),
        (["report-memory", "--csv", "--json"], 2, "usage", None),
        (["methods", "lwn"], 2, "usage", "lwm"),
    ],
)  # fmt: skip
def test_refusals(ask, first, tmp_path, monkeypatch, arguments, code, name, hint):
    monkeypatch.chdir(tmp_path)
    words = [str(a).replace("FIRST", str(first)) for a in arguments]
    text = ask(*[word for word in words if word != "--json"]) if "--csv" not in words else None
    answer = ask(*words, *([] if "--json" in words else ["--json"]))
    error = answer.json["error"]
    assert (answer.code, error["code"], answer.json["ok"]) == (code, name, False)
    assert set(answer.json) == {"schema", "command", "ok", "error"}
    assert (hint is None) or hint in error["hint"]
    if text is not None:
        assert (text.code, text.out) == (code, "")
        assert f"error: {' '.join(error['message'].split())}\n" in text.err
        assert text.err.count("error:") == 1 and "Traceback" not in text.err
        assert ("hint: " in text.err) == (error["hint"] is not None)
    assert not (tmp_path / ".edgecil" / "current").exists()


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["learn", "--metod", "lwm"], "no such option: --metod", "did you mean --method?"),
        (["export", "--precision", "int4"],
         "invalid value for '--precision': 'int4' is not one of 'int8', 'fp32'", None),
        (["learn", "--new-data", "FIRST", "--set", "gamma=-1"],
         "option gamma must be at least 0, got -1.0", None),
        (["learn", "--new-data", "FIRST", "--method", "lwf", "--set", "temperature=1000"],
         "option temperature must be in [0.1, 100], got 1000.0", None),
        (["predict", "FIRST"], "FIRST is a folder: predict takes image files",
         "give files: FIRST/*/*.png"),
        (["predict", "FIRST/cat"], "FIRST/cat is a folder: predict takes image files",
         "give files: FIRST/cat/*.png"),
    ],
)  # fmt: skip
def test_the_words_of_a_refusal(ask, first, tmp_path, monkeypatch, arguments, message, hint):
    monkeypatch.chdir(tmp_path)
    answer = ask(*[a.replace("FIRST", str(first)) for a in arguments], "--json")
    error = answer.json["error"]
    assert error["message"] == message.replace("FIRST", str(first))
    assert hint is None or error["hint"] == hint.replace("FIRST", str(first))


def test_a_class_that_is_known_is_named(ask, known, first):
    answer = ask("learn", "--new-data", first, "--workspace", known)
    assert answer.code == 1 and "cat, dog, fox" in answer.err


def test_a_version_that_is_not_there(ask, known):
    answer = ask("rollback", 9, "--workspace", known)
    assert answer.code == 1 and "no version 9" in answer.err


def test_a_failed_gate_is_4_and_leaves_nothing(ask, known, tmp_path):
    answer = ask("export", "--workspace", known, "-o", tmp_path, "--min-agreement", 1.01, "--json")
    assert (answer.code, answer.json["error"]["code"]) == (4, "verification_failed")
    assert not list(tmp_path.iterdir())


def _fail_with(monkeypatch, error):
    from edgecil import api

    def fail(*arguments, **settings):
        raise error

    monkeypatch.setattr(api, "evaluate", fail)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyError("stages"), 70, "bug in edgecil: KeyError: 'stages'"),
        (RuntimeError("first\nsecond"), 70, "RuntimeError: first\n"),
        (MemoryError(), 1, "the memory ran out"),
        (OSError(errno.ENOSPC, "No space left on device", "/some/file"), 1, "/some/file: no space"),
        (PermissionError(errno.EACCES, "Permission denied", "x.png"), 1, "x.png: permission"),
        (OSError("strange"), 70, "bug in edgecil"),
        (VerificationError("not the\nmodel"), 4, "error: not the model\n"),
        (KeyboardInterrupt(), 130, "error: stopped"),
    ],
)
def test_what_nobody_foresaw(ask, monkeypatch, known, first, error, code, text):
    _fail_with(monkeypatch, error)
    answer = ask("evaluate", first, "--workspace", known)
    assert answer.code == code and text in answer.err and answer.out == ""
    assert "Traceback" not in answer.err
    assert ("EDGECIL_DEBUG" in answer.err) == (code == 70)


def test_the_traceback_comes_on_request(ask, monkeypatch, known, first):
    _fail_with(monkeypatch, KeyError("stages"))
    monkeypatch.setenv("EDGECIL_DEBUG", "1")
    answer = ask("evaluate", first, "--workspace", known, "--json")
    assert "Traceback" in answer.err and "in fail" in answer.err
    assert answer.json["error"]["code"] == "bug"


def test_control_characters_of_a_file_name_do_not_reach_the_terminal(ask, tmp_path):
    answer = ask("learn", "--new-data", tmp_path / "a\x1b[31mb\nc")
    assert answer.code == 1 and "\x1b" not in answer.err
    assert "a\\x1b[31mb c" in answer.err


def test_a_workspace_from_the_future(ask, own):
    manifest = own / "versions" / "2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema": 1', '"schema": 99'))
    answer = ask("status", "--workspace", own)
    assert answer.code == 1 and "schema 99" in answer.err and "upgrade" in answer.err


def test_only_the_first_rank_speaks(ask, monkeypatch, known):
    monkeypatch.setenv("RANK", "1")
    answer = ask("status", "--workspace", known)
    assert (answer.code, answer.out, answer.err) == (0, "", "")
