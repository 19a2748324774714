"""``bench``: what is refused before anything starts, what is listed, and how failures are told."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from edgecil.bench import pool
from edgecil.bench.pool import Fault, Outcome
from edgecil.bench.protocol_files import protocols
from edgecil.bench.results import to_text

PROTOCOL = """
summary = "three classes"
layout = "folders"
split = [2, 1]
order = "natural"
arch = "resnet8"
epochs = 1
"""


@pytest.fixture(scope="module")
def data(write_images, tmp_path_factory):
    """A data set of three classes: 4 training and 2 test images each."""
    root = tmp_path_factory.mktemp("data")
    write_images(root / "train", "cat dog fox", 4)
    write_images(root / "test", "cat dog fox", 2)
    return root


@pytest.fixture
def bench(ask, data, tmp_path, monkeypatch):
    """Calls ``bench`` under a small protocol; no process may be started."""

    def never(*arguments):
        raise AssertionError("a run was started")

    monkeypatch.setattr(pool, "_make", never)
    (tmp_path / "own.toml").write_text(PROTOCOL)

    def call(*arguments, protocol=tmp_path / "own.toml"):
        return ask(
            "bench", protocol, "--data", data, "--out", tmp_path / "out", *arguments
        )  # fmt: skip

    return call


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ("lwm,icrl", ("unknown method 'icrl'", "did you mean icarl")),
        ("lwm,lwm:gama=1", ("lwm has no option 'gama'", "did you mean gamma?")),
        ("lwm,lwm:gamma=-1", ("option gamma must be", "got -1")),
        (
            "abd:preset=abd-relesed",
            ("abd has no preset 'abd-relesed'", "did you mean abd-released"),
        ),
        ("lwm,lwf+mucc", ("unknown plug-in 'mucc'", "did you mean muc?")),
    ],
)
def test_what_is_misspelt_is_said_before_anything_starts(bench, tmp_path, methods, words):
    answer = bench("--methods", methods, "--precision", "float32")
    assert answer.code == 2, answer
    assert all(word in answer.err for word in words)
    assert "reading the data set" not in answer.err and not (tmp_path / "out").exists()


def test_a_preset_that_no_method_has(bench, tmp_path):
    own = tmp_path / "preset.toml"
    own.write_text(f'{PROTOCOL}preset = "relesed"\n')
    answer = bench("--methods", "lwm", protocol=own)
    assert answer.code == 2 and "no method has the preset 'relesed'" in answer.err


def test_presets_of_the_protocols_are_those_of_some_method():
    from edgecil.bench.checks import _check_preset

    for made in protocols().values():
        _check_preset(made)


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--memory-budget", "1B"), 3, "icarl keeps at least"),
        (("--exemplars-total", 2), 3, "a budget of 2 exemplars leaves none for each of 3 classes"),
        (("--exemplar-size", 99), 2, "--exemplar-size 99: images are decoded to 32 x 32"),
        (("--codec", "pgn"), 2, "unknown codec 'pgn'"),
        (("--epochs", 0), 2, "epochs must be at least 1"),
        (("--device", "cuda:77"), 2, "is not there"),
    ],
)
def test_impossible_runs_are_refused_once_with_their_own_code(bench, more, code, words):
    answer = bench("--methods", "icarl", "--precision", "float32", *more)
    assert answer.code == code, answer
    assert answer.err.count(words) == 1
    assert "the others are kept" not in answer.err


def test_data_without_methods_are_asked_for_them(bench):
    answer = bench()
    assert answer.code == 2 and "--methods is missing" in answer.err


def test_too_few_classes_for_the_protocol(bench, tmp_path):
    own = tmp_path / "more.toml"
    own.write_text(PROTOCOL.replace("split", "classes = 25\nsplit"))
    answer = bench("--methods", "lwm", protocol=own)
    assert answer.code == 1 and "more has 25 classes, the data 3" in answer.err


def test_a_head_of_fixed_width_without_room_for_all_classes(bench, monkeypatch):
    from edgecil.methods import icarl

    narrow = replace(icarl.PRESETS["icarl"], head_width=2)
    monkeypatch.setattr(icarl, "PRESETS", {"icarl": narrow})
    answer = bench("--methods", "lwm,icarl:preset=icarl", "--precision", "float32")
    assert answer.code == 2, answer
    assert "icarl:preset=icarl: its head has 2 units, own 3 classes" in answer.err


@pytest.fixture
def failing(ask, data, tmp_path, monkeypatch):
    """Calls ``bench`` where the run of icarl, and no other, meets a full budget."""

    def run_all(runs, data, out, *, jobs, say):
        fault = Fault("no room", "raise it", "over_budget", 3)
        say("icarl seed 0: no room")
        return [Outcome(r, out, fault if r.variant.method == "icarl" else None) for r in runs]

    monkeypatch.setattr(pool, "run_all", run_all)
    (tmp_path / "own.toml").write_text(PROTOCOL)

    def call(methods, *more):
        return ask("bench", tmp_path / "own.toml", "--data", data, "--methods", methods, *more)

    return call


def test_when_all_fail_nothing_is_said_to_be_kept(failing):
    answer = failing("icarl")
    assert answer.code == 3 and answer.err.count("no room") == 1
    assert "error: 1 of 1 runs failed: icarl with seed 0" in answer.err
    assert "hint: raise it" in answer.err and "kept" not in answer.err


def test_when_some_fail_the_others_are_kept(failing):
    answer = failing("lwm,icarl")
    assert answer.code == 3 and "1 of 2 runs failed" in answer.err
    assert "the results of the others are kept" in answer.err


def test_programs_are_told_why(failing):
    answer = failing("lwm,icarl", "--json")
    assert answer.code == 3
    assert answer.json["error"]["code"] == "over_budget"
    assert answer.json["error"]["message"].endswith("icarl with seed 0: no room")


@pytest.fixture
def made(tmp_path):
    """The folder of two methods' results under the small protocol, over two seeds and one."""
    (tmp_path / "own.toml").write_text(PROTOCOL)
    folder = tmp_path / "made"
    folder.mkdir()
    runs = (("lwm", 0, 0.5), ("lwm", 1, 0.7), ("lwf", 0, 0.4), ("lwf", 1, 0.5), ("ncm", 1, 0.6))
    for method, seed, final in runs:
        row = {
            "method": method, "options": {}, "settings": {}, "seed": seed, "classes": [2, 3],
            "protocol": "own", "accuracy": [0.9, final], "average": (0.9 + final) / 2,
            "final": final, "forgetting": 0.1, "kept_bytes": [0, 0],
        }  # fmt: skip
        (folder / f"{method}-{seed}.json").write_text(to_text(row))
    return folder


def test_differences_are_paired_over_seeds(ask, made, tmp_path):
    asked = ("bench", tmp_path / "own.toml", "--out", made, "--against", "lwf")
    text = ask(*asked).out
    assert "points above lwf, paired over seeds, with 95 % intervals:" in text
    rows = [" ".join(line.split()) for line in text.partition("points above")[2].splitlines()]
    # 10 and 20 points: a mean of 15, and 12.706 of Student's t times 5.
    assert "lwm +15.0 ± 63.5 +7.5 ± 31.8 2" in rows
    assert "ncm +10.0 +5.0 1" in rows
    answer = ask(*asked, "--json").json["result"]
    assert answer["against"] == "lwf"
    lwm, ncm = sorted(answer["differences"], key=lambda d: d["name"])
    assert lwm["seeds"] == 2 and lwm["final"]["mean"] == pytest.approx(0.15)
    assert lwm["final"]["margin"] == pytest.approx(0.6353)
    assert ncm["final"]["margin"] is None


def test_a_difference_to_what_is_not_there(ask, made, tmp_path):
    answer = ask("bench", tmp_path / "own.toml", "--out", made, "--against", "lmw")
    assert answer.code == 2 and "no result is called 'lmw'" in answer.err
    assert "did you mean lwm" in answer.err


def test_the_spread_of_the_table_is_chosen(ask, made, tmp_path):
    for more, shown in (((), "75.0 ± 7.1"), (("--spread", "population"), "75.0 ± 5.0")):
        answer = ask("bench", tmp_path / "own.toml", "--out", made, *more)
        assert answer.code == 0, answer
        assert shown in (made / "table.md").read_text()


def test_protocols_are_listed_in_a_line_each(ask, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = ask("bench").out.splitlines()
    assert [line.split()[0] for line in lines if line] == ["protocol", *protocols()]
    assert max(map(len, lines)) <= 80
    assert any(
        "quick-mirrored                    quick, but images are only mirrored" in line
        for line in lines
    )


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("bench q", {"quick", "quick-mirrored", "quick-short"}),
        ("learn --method lwm --set ", {"beta=", "gamma="}),
        ("learn --method lwm --set ga", {"gamma="}),
        ("learn --method nobody --set ", set()),
    ],
)
def test_the_shell_completes(start, words, found):
    before = len(words.split(" "))
    env = {"_EDGECIL_COMPLETE": "complete_bash", "COMP_CWORD": str(before)}
    out, err = start(env={**env, "COMP_WORDS": f"edgecil {words}"}).communicate()
    assert set(out.split()) == found, err


def test_without_a_method_the_options_are_those_of_the_one_in_use(start, own):
    """Of icarl at first and of lwm, the default, in an empty place."""
    env = {"_EDGECIL_COMPLETE": "complete_bash", "COMP_CWORD": "3"}
    for place, some in ((own, "repeats="), (own / "nowhere", "gamma=")):
        env |= {"COMP_WORDS": "edgecil learn --set ", "COMP_CWORD": "3"}
        env["EDGECIL_WORKSPACE"] = os.fspath(place)
        out, err = start(env=env).communicate()
        assert some in out.split(), err
