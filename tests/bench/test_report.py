"""The table and the figures of a folder of results."""

from __future__ import annotations

import math
import statistics

import pytest

from edgecil.bench import paired, report, results
from edgecil.bench.protocol_files import parse, protocols
from edgecil.errors import DataError, UsageError

OWN = 'summary = "four"\nlayout = "folders"\nsplit = [2, 2]\n'
PLAIN = parse("p", OWN)["p"]


def result(method, accuracy, kept=0, **more):
    stops = [2 * (i + 1) for i in range(len(accuracy))]
    return {
        "method": method, "options": {}, "settings": {}, "seed": 0, "classes": stops,
        "protocol": "p", "accuracy": accuracy, "average": statistics.fmean(accuracy),
        "final": accuracy[-1], "forgetting": 0.1, "forgetting_of_base": 0.4,
        "top5": [1.0] * (len(accuracy) - 1) + [0.8], "kept_bytes": [0, kept], "images": [9, 9],
        "kept_fields": [{"name": "exemplars.images", "bytes": kept}] if kept else [],
        "seconds": [1.0, 1.0], "cpu_seconds": [1.0, 1.0], "training": {"device": "cpu"}, **more,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Writes results into a folder, and returns it."""

    def write(*rows):
        for number, row in enumerate(rows):
            (tmp_path / f"{number}.json").write_text(results.to_text(row))
        return tmp_path

    return write


def cells(text):
    """Return the rows of a Markdown table as dictionaries, by the title of the column."""
    head, _, *rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_all_is_written_from_the_results_alone(folder):
    made = report.write(
        folder(result("lwm", [0.9, 0.5]), result("icarl", [0.9, 0.5], 60_000)), PLAIN
    )
    assert {p.name for p in made.files} == {
        "table.md", "accuracy.png", "accuracy.svg", "memory.png", "memory.svg",
    }  # fmt: skip
    place = made.files[0].parent
    assert all(p.stat().st_size > 100 for p in made.files)
    assert "`icarl`" in (place / "table.md").read_text()
    for figure in ("accuracy.svg", "memory.svg"):
        drawn = (place / figure).read_text()
        assert "lwm" in drawn
        assert "icarl" in drawn


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ([{}, {}], ["icarl"]),
        ([{}, {"codec": "raw"}], ["icarl, webp-lossless", "icarl, raw"]),
        ([{"codec": "raw"}, {"codec": "raw"}], ["icarl, raw"]),
        (
            [{"memory_budget": 600_000}, {"codec": "raw", "memory_budget": 300_000}],
            ["icarl, jpeg-75, 600 kB", "icarl, raw, 300 kB"],
        ),
    ],
)
def test_rows_are_told_apart_by_what_is_stored_and_how(folder, settings, named):
    kept = [result("icarl", [0.9, 0.5], 60_000, settings=s) for s in settings]
    others = [result("joint", [0.9, 0.7], 1_000_000), result("lwm", [0.9, 0.6])]
    found = results.load(folder(*others, *kept))
    assert list(dict.fromkeys(r["name"] for r in found)) == ["joint", "lwm", *named]


@pytest.mark.parametrize("figure", ["accuracy.svg", "memory.svg"])
def test_figures_of_the_same_results_are_the_same_files(folder, figure):
    place = folder(result("lwm", [0.9, 0.5]), result("icarl", [0.9, 0.5], 60_000))
    once, again = (
        {p.name: p.read_bytes() for p in report.write(place, PLAIN).files} for _ in range(2)
    )
    assert once[figure] == again[figure]


def test_results_of_two_protocols_are_refused(folder):
    rows = [result("lwm", [0.9, 0.5], protocol=name) for name in ("p", "q")]
    with pytest.raises(DataError, match="different protocols"):
        report.write(folder(*rows), PLAIN)


def test_results_of_another_protocol_than_the_one_named_are_refused(folder):
    row = result("lwm", [0.9, 0.5], protocol="q")
    with pytest.raises(DataError, match="its results are of q, not of p"):
        report.write(folder(row), PLAIN)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(DataError, match="no result there"):
        report.write(tmp_path, PLAIN)


class TestPublished:
    def test_a_protocol_of_ones_own_shows_its_own(self, folder):
        """It may be called like one that comes with edgecil."""
        text = OWN + '[published]\nlwm = { table = "ours, 2", accuracy = [88.0, 44.0] }\n'
        own = parse("abd-imagenet50", text)["abd-imagenet50"]
        row = result("lwm", [0.9, 0.5], protocol=own.name)
        ours, printed = cells(report.write(folder(row), own).files[0].read_text())
        assert (printed["method"], printed["4"], printed["average"]) == (
            "published: ours, 2", "44.0", "66.0",
        )  # fmt: skip
        assert set(ours) & set(results.EXTRAS.values()) == set()

    def test_forgetting_of_the_base_has_a_column_of_its_own(self, folder):
        papers = protocols()["mnemonics-cifar100-b50-5"].published
        row = result("icarl", [0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
        ours, printed = cells(results.markdown(results.load(folder(row)), papers))
        assert (ours["forgetting"], ours["F"]) == ("10.0", "40.0")
        assert (printed["forgetting"], printed["F"]) == ("—", "31.9")
        assert printed["average"] == "57.1"
        assert "top-5" not in ours

    def test_top_5_of_the_last_increment(self, folder):
        papers = protocols()["abd-imagenet50"].published
        row = result("abd", [0.9, 0.8, 0.7, 0.6, 0.5])
        ours, printed = cells(results.markdown(results.load(folder(row)), papers))
        assert (ours["top-5"], printed["top-5"]) == ("80.0", "71.5")
        assert "F" not in ours

    def test_omega_has_one_unit(self, folder):
        papers = protocols()["abd-cifar100-b0-5"].published
        rows = [result(m, [0.8, 0.6, 0.4, 0.3, 0.2]) for m in ("finetune", "joint")]
        first, paper, *_ = cells(results.markdown(results.load(folder(*rows)), papers))
        assert first["Ω"] == "1.000"
        assert (paper["10"], paper["Ω"]) == ("16.4", "0.489")

    def test_there_is_no_more_in_the_table_where_none_is_printed(self, folder):
        (row,) = cells(results.markdown(results.load(folder(result("lwm", [0.9, 0.5])))))
        assert list(row) == [
            "method", "2", "4", "average", "forgetting", "kept", "Ω", "images/s", "seeds",
        ]  # fmt: skip

    def test_of_other_increments_is_refused(self, folder):
        text = OWN + '[published]\nlwm = { table = "2", accuracy = [88.0, 44.0, 22.0] }\n'
        with pytest.raises(DataError, match="2: 3 accuracies for 2 increments"):
            report.write(folder(result("lwm", [0.9, 0.5])), parse("p", text)["p"])


SCRATCH = {"options": {"scratch": "true"}}


class TestOracle:
    def omegas(self, *rows):
        return {(r["name"], r["seed"]): r["omega"] for r in rows}

    def test_is_the_one_from_scratch(self, folder):
        place = folder(
            result("joint", [0.9, 0.9]),
            result("joint", [0.8, 0.8], **SCRATCH),
            result("lwm", [0.8, 0.4]),
        )
        assert self.omegas(*results.load(place)) == {
            ("joint", 0): 1.125, ("joint:scratch=true", 0): 1.0, ("lwm", 0): 0.75,
        }  # fmt: skip
        table = report.write(place, PLAIN).files[0].read_text()
        assert table.endswith("|\n\nΩ is relative to `joint:scratch=true`.\n")

    def test_is_from_scratch_by_a_preset_too(self, folder):
        on = {"preset": "abd", "options": {"scratch": "off"}}
        rows = [result("joint", [0.9, 0.9], **on), result("joint", [0.8, 0.8], preset="abd")]
        assert results.oracle(results.load(folder(*rows))) == "joint"
        named = result("joint", [0.8, 0.8], options={"preset": "abd"})
        found = results.load(folder(result("joint", [0.9, 0.9]), named))
        assert results.oracle(found) == "joint:preset=abd"

    def test_is_of_one_row_for_all_seeds(self, folder):
        """A mean over seeds would mix two measures."""
        rows = [result("joint", [0.9, 0.9], seed=seed) for seed in (0, 1)]
        rows += [result("joint", [0.8, 0.8], **SCRATCH), result("lwm", [0.8, 0.4], seed=1)]
        found = self.omegas(*results.load(folder(*rows)))
        assert (found["joint", 1], found["lwm", 1]) == (None, None)

    def test_has_whatever_settings(self, folder):
        settings = {"memory_budget": 600_000}
        rows = [result("joint", [0.8, 0.8], settings=settings), result("lwm", [0.8, 0.4])]
        found = self.omegas(*results.load(folder(*rows)))
        assert found == {("joint, 600 kB", 0): 1.0, ("lwm", 0): 0.75}

    def test_of_two_that_go_on_the_plainest(self, folder):
        rows = [result("joint", [v, v], settings={"epochs": e} if e else {}) for v, e in
                ((0.5, 9), (0.8, 0))]  # fmt: skip
        assert results.oracle(results.load(folder(*rows))) == "joint"

    def test_none_is_said_where_there_is_none(self, folder):
        found = results.load(folder(result("lwm", [0.9, 0.5], omega=0.7)))
        assert (results.oracle(found), found[0]["omega"]) == (None, None)
        assert results.legend(found) == ""


def test_the_spread_is_chosen_and_named(folder):
    place = folder(*(result("lwm", [0.9, v], seed=s) for s, v in ((0, 0.5), (1, 0.7))))
    sample = report.write(place, PLAIN).files[0].read_text()
    population = report.write(place, PLAIN, spread="population").files[0].read_text()
    assert cells(sample.partition("\n\n")[0])[0]["average"] == "75.0 ± 7.1"
    assert cells(population.partition("\n\n")[0])[0]["average"] == "75.0 ± 5.0"
    assert "± is the sample standard deviation" in sample
    assert "± is the population standard deviation" in population


class TestDifferences:
    def found(self, folder):
        rows = [result("lwm", [0.9, v], seed=s) for s, v in ((0, 0.50), (1, 0.56), (2, 0.52))]
        rows += [result("lwf", [0.9, v], seed=s) for s, v in ((0, 0.48), (1, 0.52), (3, 0.1))]
        rows += [result("icarl", [0.9, 0.6], seed=2), result("ewc", [0.9, 0.6], seed=7)]
        return results.load(folder(*rows))

    def test_are_paired_over_the_seeds_that_both_have(self, folder):
        lwf, icarl = sorted(paired.differences(self.found(folder), "lwm"), key=lambda d: -d.seeds)
        assert (lwf.name, lwf.seeds) == ("lwf", 2)
        assert lwf.final.mean == pytest.approx(-0.03)  # 2 and 4 points
        assert lwf.final.margin == pytest.approx(12.706 * 0.01, rel=1e-3)  # s / sqrt(2): 1 point
        assert lwf.average.mean == pytest.approx(-0.015)
        assert (icarl.name, icarl.seeds) == ("icarl", 1)
        assert icarl.final.mean == pytest.approx(0.08)
        assert math.isinf(icarl.final.margin)

    def test_to_a_row_that_is_not_there(self, folder):
        with pytest.raises(UsageError, match="no result is called 'lmw'") as caught:
            paired.differences(self.found(folder), "lmw")
        assert "lwm" in (caught.value.hint or "")

    def test_to_a_row_of_other_seeds(self, folder):
        with pytest.raises(DataError, match="no other method has a seed in common with ewc"):
            paired.differences(self.found(folder), "ewc")
