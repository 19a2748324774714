"""``report-memory`` with a published table, with results of bench, and as a figure."""

from __future__ import annotations

import csv
import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from edgecil.reporting import comparison
from edgecil.reporting.labels import label
from edgecil.reporting.measured import result_of
from edgecil.reporting.protocol import Dataset, MemoryProtocol
from edgecil.workspace import Workspace

# The increments of the workspace ``known``, which holds three exemplars of each class.
SMALL = MemoryProtocol(
    "small", "three classes, then two", "nobody", (3, 2), 15, "lwf-mc", (),
    (Dataset("toys", "resnet8", "cifar", 8, ("raw", "webp-lossless"), {"icarl": 9_400_000}),),
)  # fmt: skip
ANY = ("report-memory", "--protocol", "small")


@pytest.fixture
def small(monkeypatch):
    """Puts a small table in the place of the published one."""
    monkeypatch.setattr(comparison, "protocol", lambda name: SMALL)


def result(name, kept, average, seed=0, **changes):
    """Return a result of bench with the entries that a figure and a table read."""
    method, *pairs = name.split(":")
    options = dict(pair.split("=") for pair in pairs)
    return {
        "protocol": "quick", "method": method, "options": options,
        "settings": {}, "seed": seed, "classes": [3, 5], "accuracy": [average, average],
        "average": average, "kept_bytes": [kept, kept], "exemplars_per_class": None, **changes,
    }  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """A folder of results: methods that keep nothing, one that keeps all, two between."""
    rows = [
        ("finetune", 0, 0.2), ("lwf", 0, 0.35), ("lwf-mc", 0, 0.351), ("lwm", 0, 0.352),
        ("lwm:gamma=0.2", 0, 0.353), ("icarl", 3_000_000, 0.5), ("m2kd", 300_000, 0.45),
        ("joint", 900, 0.7),
    ]  # fmt: skip
    folder = tmp_path / "results"
    folder.mkdir()
    for name, kept, average in rows:
        for seed in (0, 1):
            text = json.dumps(result(name, kept, average + seed / 100, seed))
            (folder / f"{name.replace(':', '-')}-seed{seed}.json").write_text(text)
    return folder


def test_json_has_dataset_and_printed_figure_in_every_row(ask, small, known):
    answer = ask(*ANY, "--workspace", known, "--json").json["result"]
    names = {"method", "kept_bytes", "fields", "training_bytes", "basis", "dataset",
             "published_bytes", "codec", "per_increment"}  # fmt: skip
    for row in answer["methods"]:
        assert names <= set(row)
        assert sum(f["bytes"] for f in row["fields"]) == row["kept_bytes"]
        assert row["per_increment"][-1] <= row["kept_bytes"] and len(row["per_increment"]) == 2
        assert row["published_bytes"] == (9_400_000 if row["method"] == "icarl" else None)
    (seen,) = [row for row in answer["methods"] if row["basis"] == "measured"]
    file = known / "versions" / "2" / "memory.safetensors"
    assert (seen["method"], seen["kept_bytes"]) == ("icarl", file.stat().st_size)
    assert seen["codec"] == Workspace(known).manifest().kept["codec"]
    assert {t["method"] for t in answer["training"]} == {r["method"] for r in answer["methods"]}


def test_results_of_bench_are_measured_too(ask, small, known, tmp_path):
    found = result_of(Workspace(known))
    (tmp_path / "icarl.json").write_text(json.dumps({**result("icarl", 1, 0.5), **found}))
    answer = ask(*ANY, "--results", tmp_path, "--csv")
    lines = list(csv.DictReader(io.StringIO(answer.out)))
    wanted = {"method": "icarl", "codec": "webp-lossless", "field": "total"}
    totals = {r["basis"]: int(r["bytes"]) for r in lines if wanted.items() <= r.items()}
    assert totals["measured"] == found["kept_bytes"][-1] <= totals["plan"]


@pytest.mark.parametrize("width", [80, 60])
def test_text_fits_the_terminal_and_names_fields_and_units(ask, small, known, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    answer = ask(*ANY, "--workspace", known)
    assert answer.code == 0, answer
    assert not [line for line in answer.out.splitlines() if len(line) > width]
    assert "toys with resnet8" in answer.out and "10^6 bytes" in answer.out
    assert "exemplars.images" in answer.out and "teachers" in answer.out
    assert "icarl, webp-lossless" in answer.out and "9.40" in answer.out


def test_quiet_is_a_line_per_row(ask, small):
    lines = [line.split() for line in ask(*ANY, "-q").out.splitlines()]
    assert ["toys", "lwf-mc", "-", "0"] in lines
    assert {line[2] for line in lines if line[1] == "icarl"} == {"raw", "webp-lossless"}


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_figure_has_a_point_per_method(ask, results, tmp_path, suffix):
    target = tmp_path / f"memory.{suffix}"
    answer = ask("report-memory", "--plot", target, "--results", results, "--json")
    points = answer.json["result"]["points"]
    assert len(points) == 8 and all(p["seeds"] == 2 for p in points)
    assert [p["method"] for p in points if p["bound"]] == ["joint"]
    if suffix == "png":
        pixels = np.asarray(Image.open(target).convert("L"))
        assert pixels.shape[0] > 600 and pixels.shape[1] > 1000
        assert 0.002 < (pixels < 128).mean() < 0.2
        return
    root = ElementTree.parse(target).getroot()
    drawn = [e.get("id") for e in root.iter() if (e.get("id") or "").startswith("point ")]
    assert sorted(drawn) == sorted(f"point {p['method']}" for p in points if not p["bound"])
    written = " ".join(t.text or "" for t in root.iter() if t.tag.endswith("text"))
    for point in points:
        assert re.search(rf"(^|\s){re.escape(point['method'])}(:|\s|$)", written), point
    assert "nothing" in written


@pytest.mark.parametrize("seed", range(3))
def test_names_in_a_figure_do_not_overlap(seed):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=100)
    axes = figure.subplots()
    random = np.random.default_rng(seed)
    at = random.normal(0.3, 0.03, (12, 2))
    axes.set(xlim=(0, 1), ylim=(0, 0.5))
    figure.draw_without_rendering()
    boxes = label([(axes, x, y, f"method-{n}") for n, (x, y) in enumerate(at)])
    assert len(boxes) == 12
    for number, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_results_that_cannot_be_drawn_are_refused(ask, results, tmp_path):
    refused = [
        (["--plot", tmp_path / "a.pdf", "--results", results], 2, ".png or an .svg"),
        (["--plot", tmp_path / "a.png"], 2, "--results"),
        (["--plot", tmp_path / "a.png", "--results", results, "--csv"], 2, "--csv"),
        (["--results", results], 2, "--protocol or --plot"),
        (["--protocol", "m2kd"], 2, "m2kd-table2"),
        (["--plot", tmp_path / "a.png", "--results", tmp_path], 1, "no results"),
    ]
    for arguments, code, words in refused:
        answer = ask("report-memory", *arguments)
        assert answer.code == code and words in answer.err, answer
    (results / "other.json").write_text(json.dumps(result("lwf", 0, 0.3, protocol="tens")))
    answer = ask("report-memory", "--plot", tmp_path / "a.png", "--results", results)
    assert answer.code == 1 and "quick, tens" in answer.err
    assert not list(tmp_path.glob("a.*"))
