"""The report as JSON and CSV: the same bytes, which add up."""

import csv
import io
import json

import pytest

from edgecil.memory.fields import COUNTS, IMAGES, Dimensions, exemplar_fields
from edgecil.memory.plan import plan
from edgecil.memory.report import Comparison, MethodMemory, method_memory, to_csv, to_json


def rows():
    dimensions = Dimensions((10,), 64, 32, 32, exemplars=20)
    return [
        method_memory("lwf-mc", plan((), dimensions), basis="plan"),
        method_memory(
            "icarl", plan(exemplar_fields(), dimensions), basis="measured", training_bytes=9
        ),
        method_memory("icarl", plan(exemplar_fields("png"), dimensions), basis="plan"),
    ]


def test_json_has_the_names_of_the_contract():
    baseline, icarl, bound = to_json(rows())["methods"]
    assert baseline == {
        "method": "lwf-mc", "kept_bytes": 0, "fields": [], "training_bytes": None,
        "basis": "plan", "exact": True,
    }  # fmt: skip
    assert [f["name"] for f in icarl["fields"]] == [IMAGES, COUNTS, "header"]
    assert icarl["fields"][0]["bytes"] == 20 * 32 * 32 * 3
    assert icarl["fields"][1]["bytes"] == 20
    assert sum(f["bytes"] for f in icarl["fields"]) == icarl["kept_bytes"]
    assert (icarl["basis"], icarl["training_bytes"]) == ("measured", 9)
    assert not bound["exact"]
    json.dumps(to_json(rows()))


def test_csv_says_the_same():
    lines = list(csv.DictReader(io.StringIO(to_csv(rows()))))
    for row in rows():
        mine = [x for x in lines if x["method"] == row.method and x["basis"] == row.basis]
        assert [int(x["bytes"]) for x in mine if x["field"] == "total"] == [row.kept_bytes]
        assert sum(int(x["bytes"]) for x in mine if x["field"] != "total") == row.kept_bytes
    assert "published_bytes" not in lines[0]


def test_published_figures_stand_beside_ours():
    compared = Comparison("cifar100", 9_400_000, "raw", (3, 5))
    row = MethodMemory("icarl", 5, (("x", 5),), compared=compared)
    told = row.to_json()
    assert (told["dataset"], told["published_bytes"], told["codec"]) == ("cifar100", 9400000, "raw")
    assert told["per_increment"] == [3, 5]
    lines = list(csv.DictReader(io.StringIO(to_csv([row, rows()[0]]))))
    field, total, other = lines
    assert (total["dataset"], total["codec"], total["published_bytes"]) == (
        "cifar100", "raw", "9400000",
    )  # fmt: skip
    assert (field["dataset"], field["published_bytes"]) == ("cifar100", "")
    assert other["dataset"] == other["published_bytes"] == ""


def test_fields_that_do_not_add_up_are_a_bug():
    with pytest.raises(ValueError, match="add up to 4, not 5"):
        MethodMemory("x", 5, (("a", 4),))
