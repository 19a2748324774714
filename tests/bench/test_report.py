"""The table and the figures of a folder of results."""

from __future__ import annotations

import pytest

from edgecil.bench import report, results
from edgecil.errors import DataError


def result(method, accuracy, kept, **more):
    return {
        "method": method, "options": {}, "settings": {}, "seed": 0, "classes": [2, 4],
        "protocol": "p", "accuracy": accuracy, "average": sum(accuracy) / 2,
        "final": accuracy[-1], "forgetting": 0.1, "kept_bytes": [0, kept], "images": [9, 9],
        "seconds": [1.0, 1.0], "cpu_seconds": [1.0, 1.0], "training": {"device": "cpu"},
        "omega": None, **more,
    }  # fmt: skip


def test_all_is_written_from_the_results_alone(tmp_path):
    for method, kept in (("lwm", 0), ("icarl", 60_000)):
        text = results.to_text(result(method, [0.9, 0.5], kept))
        (tmp_path / f"{method}.json").write_text(text)
    made = report.write(tmp_path)
    assert {p.name for p in made.files} == {
        "table.md", "accuracy.png", "accuracy.svg", "memory.png", "memory.svg",
    }  # fmt: skip
    assert all(p.stat().st_size > 100 for p in made.files)
    assert "`icarl`" in (tmp_path / "table.md").read_text()
    for figure in ("accuracy.svg", "memory.svg"):
        drawn = (tmp_path / figure).read_text()
        assert "lwm" in drawn
        assert "icarl" in drawn


def test_results_of_two_protocols_are_refused(tmp_path):
    for name in ("p", "q"):
        text = results.to_text(result("lwm", [0.9, 0.5], 0, protocol=name))
        (tmp_path / f"{name}.json").write_text(text)
    with pytest.raises(DataError, match="different protocols"):
        report.write(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(DataError, match="no result there"):
        report.write(tmp_path)
