"""Every command in its three modes: text, one JSON object, one value."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil

import pytest
from rich.cells import cell_len

from edgecil_cli.memory import planned_with

# Arguments, and how the one value of --quiet follows from the JSON result.
COMMANDS = {
    "status": (["status"], lambda r: str(r["current"]["version"])),
    "history": (["history"], lambda r: "\n".join(str(v["version"]) for v in r["versions"])),
    "methods": (["methods"], lambda r: "\n".join(m["name"] for m in r["methods"])),
    "methods NAME": (["methods", "lwm"], lambda r: "\n".join(o["name"] for o in r["options"])),
    "evaluate": (["evaluate", "FIRST"], lambda r: f"{r['top1']:.4f}"),
    "predict": (
        ["predict", "FIRST/cat/0.png", "FIRST/dog/1.png"],
        lambda r: "\n".join(p["label"] for p in r["predictions"]),
    ),
    "report-memory": (
        ["report-memory"],
        lambda r: str(next(m["kept_bytes"] for m in r["methods"] if m["basis"] == "measured")),
    ),
    "learn": (
        ["learn", "--dry-run", "--new-data", "THIRD", "--epochs", "1"],
        lambda r: str(r["kept"]["bytes"]),
    ),
}


@pytest.fixture(scope="session")
def third(tmp_path_factory, write_images):
    return write_images(tmp_path_factory.mktemp("third"), "elk emu", count=4)


@pytest.fixture
def words(known, first, third):
    """Turns a command of the table into arguments."""

    def fill(name):
        places = {"FIRST": str(first), "THIRD": str(third)}
        arguments = []
        for word in COMMANDS[name][0]:
            for place, path in places.items():
                word = word.replace(place, path)
            arguments.append(word)
        return arguments if name.startswith("methods") else [*arguments, "--workspace", known]

    return fill


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_one_object_and_quiet_is_its_value(ask, words, name):
    answer, quiet = ask(*words(name), "--json"), ask(*words(name), "-q")
    assert answer.code == quiet.code == 0, answer
    assert set(answer.json) == {"schema", "command", "ok", "result"}
    assert answer.json["command"] == words(name)[0] and answer.json["ok"] is True
    assert answer.out.count("\n") == 1
    assert quiet.out == COMMANDS[name][1](answer.json["result"]) + "\n"
    assert quiet.err == ""


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("width", [80, 40])
def test_text_fits_the_terminal(ask, words, monkeypatch, name, width):
    monkeypatch.setenv("COLUMNS", str(width))
    answer = ask(*words(name))
    assert answer.code == 0, answer
    assert "\x1b" not in answer.out + answer.err
    # A word, a path say, is never broken: only lines of one word may be longer.
    long = [line for line in answer.out.splitlines() if cell_len(line) > width]
    assert not [line for line in long if len(line.split()) > 2], long


def test_learn_tells_accuracy_bytes_time_path_and_what_comes_next(taught):
    root, (text, _) = taught
    assert "version 1: 3 new classes, 3 in all" in text.out
    assert "exemplars.images" in text.out and "images/s" in text.out
    assert str(root / "versions" / "1") in text.out.replace("\n", "")
    assert "next: edgecil export" in text.err
    assert "next:" not in text.out


def test_learn_as_json_has_manifest_and_evaluation(taught):
    root, (_, answer) = taught
    result = answer.json["result"]
    assert (result["version"], result["parent"], result["method"]) == (2, 1, "icarl")
    assert result["path"] == str(root / "versions" / "2")
    assert result["evaluation"]["n"] == result["test"]["n"] == 40
    assert result["kept"]["bytes"] == (root / "versions/2/memory.safetensors").stat().st_size


def test_progress_lines_have_the_time_and_stay_off_stdout(taught):
    text = taught[1][0]
    assert "train epoch 1/1" in text.err and "train epoch" not in text.out
    line = next(line for line in text.err.splitlines() if "train epoch" in line)
    assert line[2] == line[5] == ":" and "classification" in line and "images/s" in line


def test_accuracy_over_all_classes_is_not_claimed_from_some(ask, own, second, tmp_path):
    manifest = own / "versions" / "2" / "manifest.json"
    data = json.loads(manifest.read_text())
    data["test"]["by_increment"][0] = None
    manifest.write_text(json.dumps(data))
    answer = ask("history", "--workspace", own, "--json").json
    assert [v["accuracy"] is None for v in answer["result"]["versions"]] == [False, True]


def test_history_tells_programs_how_every_version_was_made(ask, own):
    version, *_ = ask("history", "--workspace", own, "--json").json["result"]["versions"]
    manifest = json.loads((own / "versions" / "1" / "manifest.json").read_text())
    for key in ("options", "training", "edgecil_version"):
        assert version[key] == manifest[key]
    assert {"seed", "epochs", "batch_size", "optim", "device", "threads"} <= set(
        version["training"]
    )


def test_evaluate_leaves_out_what_was_not_measured(ask, known, second):
    answer = ask("evaluate", second, "--workspace", known)
    assert "increment 1" in answer.out and "not measured" in answer.out
    assert "all" not in answer.out.split()


def test_dry_run_changes_nothing(ask, own, third):
    shutil.rmtree(own / "run", ignore_errors=True)
    before = {path: path.stat().st_mtime_ns for path in own.rglob("*")}
    answer = ask("learn", "--dry-run", "--new-data", third, "--epochs", 2, "--workspace", own)
    assert "plan: 2 new classes beside 5 known, with icarl" in answer.out
    assert "2 epochs" in answer.out
    assert {path: path.stat().st_mtime_ns for path in own.rglob("*")} == before


def test_memory_report_as_csv_adds_up(ask, known):
    answer = ask("report-memory", "--csv", "--workspace", known)
    rows = list(csv.DictReader(io.StringIO(answer.out)))
    used = [row for row in rows if row["method"] == "icarl"]
    total = sum(int(row["bytes"]) for row in used if row["field"] != "total")
    assert (
        total == int(used[-1]["bytes"]) == (known / "versions/2/memory.safetensors").stat().st_size
    )
    assert {row["method"] for row in rows} >= {"lwf-mc", "lwm", "icarl"}


def test_memory_report_names_fields_and_baseline(ask, known):
    text = ask("report-memory", "--workspace", known).out
    assert "  exemplars.images" in text and "measured: in use" in text
    assert any(
        "lwf-mc" in line and "0 B" in line and "baseline" in line for line in text.split("\n")
    )


def test_memory_report_says_how_many_exemplars_are_planned(ask, known):
    text = ask("report-memory", "--workspace", known).out
    assert re.search(
        r"planned +with 3 exemplars per class as lossless WebP of \d+ x \d+ pixels\n", text
    )
    assumed = ask("report-memory", "--workspace", known, "--json").json["result"]["planned_with"]
    assert assumed["budget"] == {"bytes": None, "per_class": 3, "total": None}
    assert assumed["codec"] == "webp-lossless"
    words = {
        "as many exemplars as 2 MB hold, as raw pixels": {"bytes": 2_000_000},
        "2,000 exemplars in all as raw pixels": {"total": 2_000},
        "every image as an exemplar, as raw pixels": {},
    }
    for text, budget in words.items():
        limits = {"bytes": None, "per_class": None, "total": None, **budget}
        said = planned_with({"budget": limits, "codec": "raw", "side": 32})
        assert said == f"{text} of 32 x 32 pixels"


def test_a_limit_on_what_a_method_does_not_keep_is_said_to_be_idle(ask, first, tmp_path):
    common = ("learn", "--new-data", first, "--arch", "resnet8", "--epochs", 1, "--dry-run",
              "--workspace", tmp_path)  # fmt: skip
    said = {
        ("lwm", "--memory-budget", "2MB"):
            "lwm keeps nothing between increments: any --memory-budget holds",
        ("lwm", "--exemplars-total", 20): "lwm stores no exemplars: --exemplars-total has no",
        ("joint", "--exemplars-per-class", 5): "--exemplars-per-class has no effect",
        ("icarl", "--exemplars-total", 20): None,
        ("icarl", "--memory-budget", "2MB"): None,
        ("lwm",): None,
    }  # fmt: skip
    for (method, *limit), text in said.items():
        answer = ask(*common, "--method", method, *limit)
        assert answer.code == 0, answer
        idle = [x for x in answer.err.splitlines() if "has no effect" in x or "budget holds" in x]
        assert bool(idle) == (text is not None) and (text or "") in "".join(idle), answer.err


def test_export_after_more_of_known_classes_has_no_new_ones(ask, own, first, tmp_path):
    learned = ask(
        "learn", "--new-data", first, "--update-known", "--epochs", 1, "--workspace", own, "--json"
    )
    assert learned.code == 0, learned
    answer = ask(
        "export", "--workspace", own, "-o", tmp_path / "o", "--test-data", first,
        "--max-drop", 100, "--min-agreement", 0,
    )  # fmt: skip
    assert answer.code == 0, answer
    rows = [line.split()[0] for line in answer.out.splitlines() if line.strip()]
    assert "all" in rows and not {"old", "new"} & set(rows)


def test_method_shows_docstring_options_ranges_and_presets(ask):
    answer = ask("methods", "lwf")
    assert "Kept between increments: nothing" in answer.out
    assert "temperature = 2.0" in answer.out and "from 0.1 to 100" in answer.out
    assert "preset abd" in answer.out and "250 epochs" in answer.out
    temperature = next(
        o for o in ask("methods", "lwf", "--json").json["result"]["options"]
        if o["name"] == "temperature"
    )  # fmt: skip
    assert (temperature["default"], temperature["low"], temperature["high"]) == (2.0, 0.1, 100.0)


def test_rollback_makes_the_parent_current_and_back(ask, own):
    assert ask("rollback", "--workspace", own, "--json").json["result"] == {"current": 1, "was": 2}
    assert ask("status", "--workspace", own, "-q").out == "1\n"
    assert "1 (now)" in ask("history", "--workspace", own).out
    answer = ask("rollback", 2, "--workspace", own)
    assert answer.out.startswith("current is version 2, was 1")
    assert "next: edgecil rollback 1" in answer.err


def test_a_file_in_the_place_of_the_bundles_is_refused_first(ask, known, tmp_path):
    (tmp_path / "taken").write_text("")
    for place in (tmp_path / "taken", tmp_path / "taken" / "below"):
        answer = ask("export", "-o", place, "--workspace", known)
        assert answer.code == 2 and "taken is a file" in " ".join(answer.err.split())


def test_export_in_all_modes(ask, known, second, tmp_path):
    text = ask("export", "--workspace", known, "-o", tmp_path / "a", "--max-drop", 100)
    assert text.code == 0, text
    for word in ("parity", "agreement", "memory", "classifier-v2", "points lost"):
        assert word in text.out
    assert "--memory-limit" in text.err and "edgecil-device evaluate" in text.err
    path = tmp_path / "b" / "birds-v1"
    quiet = ask(
        "export", "--workspace", known, "-o", tmp_path / "b", "--name", "birds", "--version", 1,
        "--precision", "fp32", "-q",
    )  # fmt: skip
    assert quiet.out == f"{path}\n" and (path / "model.onnx").is_file()
    answer = ask(
        "export", "--workspace", known, "-o", tmp_path / "c", "--max-drop", 100, "--json"
    ).json
    assert answer["ok"] and answer["result"]["path"] == str(tmp_path / "c" / "classifier-v2")
    assert answer["result"]["fp32_bytes"] > answer["result"]["file_bytes"]["model.onnx"]


def test_more_images_of_known_classes(ask, own, write_images, tmp_path):
    more = write_images(tmp_path / "more", "dog owl")
    common = ("learn", "--new-data", more, "--workspace", own, "--epochs", 1)
    refused = ask(*common)
    assert refused.code == 1 and "--update-known" in refused.err
    plan = ask(*common, "--update-known", "--dry-run")
    assert "plan: more images of 2 known classes beside 5 known" in plan.out
    answer = ask(*common, "--update-known", "--test-data", more)
    assert answer.out.startswith("version 3: more images of 2 known classes, 5 in all"), answer
    assert "new " not in answer.out.split("tested")[0]
    assert "5 (+0)" in ask("history", "--workspace", own).out
    assert "3 + 2 + 0" in ask("status", "--workspace", own).out
    assert "increment 3" in ask("evaluate", more, "--workspace", own).out
    cannot = ask(*common, "--update-known", "--method", "eeil")
    assert cannot.code == 1 and "known classes (dog, owl)" in cannot.err


def test_a_run_that_began_from_another_version_is_to_be_discarded(ask, own, second, write_images,
                                                                  tmp_path):  # fmt: skip
    third = write_images(tmp_path / "third", "emu")
    stopped = ask(
        "learn", "--new-data", third, "--epochs", 300, "--time-limit", "0.1s", "--workspace", own
    )
    assert stopped.code == 130
    assert "next: edgecil learn --resume" in ask("status", "--workspace", own).err
    ask("rollback", "--workspace", own)
    status = ask("status", "--workspace", own)
    assert "which began from another version" in status.out
    assert "next: edgecil learn --discard --new-data dir/" in status.err
