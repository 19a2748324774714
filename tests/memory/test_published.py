"""A published memory table: our figures recomputed by hand, and equal to real files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import toys
from small_runs import learn

from edgecil import registry
from edgecil.errors import UsageError
from edgecil.reporting import compare
from edgecil.reporting.cases import Case, planned, planned_training
from edgecil.reporting.measured import measured, result_of
from edgecil.reporting.protocol import Dataset, MemoryProtocol, protocol
from edgecil.workspace import MEMORY, Workspace

CIFAR, IMAGENET = "CIFAR-100", "iILSVRC-small"


@pytest.fixture(scope="module")
def table():
    return compare("m2kd-table2")


def row(table, dataset, method, codec=None):
    (found,) = [
        r for r in table.rows
        if (r.compared.dataset, r.method, r.compared.codec) == (dataset, method, codec)
    ]  # fmt: skip
    return found


def padded_header(entries):
    """Return the bytes of a safetensors header: a length, and JSON padded to eight bytes."""
    text = json.dumps(entries, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8


def test_raw_exemplars_are_three_bytes_a_pixel_a_count_per_class_and_a_header(table):
    images, counts = 2000 * 32 * 32 * 3, 100 * 2
    header = padded_header(
        {
            "exemplars.counts": {
                "dtype": "U16", "shape": [100], "data_offsets": [0, counts],
            },
            "exemplars.images": {
                "dtype": "U8", "shape": [2000, 32, 32, 3],
                "data_offsets": [counts, counts + images],
            },
        }
    )  # fmt: skip
    for method in ("icarl", "rehearsal"):
        found = row(table, CIFAR, method, "raw")
        assert found.exact
        assert found.kept_bytes == images + counts + header
        # 2000 in all, divided by the classes so far and rounded down.
        stored = [10 * n * (2000 // (10 * n)) for n in range(1, 11)]
        growth = [b - 3072 * k for b, k in zip(found.compared.per_increment, stored, strict=True)]
        assert max(growth) - min(growth) < 300  # counts and digits in the header


def test_every_method_is_there_on_both_datasets(table):
    alone = {name for name, info in registry.methods().items() if info.kind == "method"}
    for dataset in (CIFAR, IMAGENET):
        named = {r.method for r in table.rows if r.compared.dataset == dataset}
        assert alone <= named
        assert all("+" in name for name in named - alone)
        (column,) = [c for c in table.columns if c.dataset.name == dataset]
        assert column.rows[0].method == "lwf-mc" and column.rows[0].kept_bytes == 0
        # How many exemplars mnemonics trains is known when they are encoded, and not before.
        unknown = {name for name, held in column.training.items() if held is None}
        assert set(column.training) == named
        assert unknown == {name for name in named if name.endswith("+mnemonics")}


def test_the_printed_figures_stand_beside_ours(table):
    printed = {
        (r.compared.dataset, r.method): r.compared.published_bytes
        for r in table.rows
        if r.compared.published_bytes is not None
    }
    assert {k: v for k, v in printed.items() if k[1] != "m2kd"} == {
        (CIFAR, "lwf-mc"): 0, (CIFAR, "icarl"): 9_400_000,
        (IMAGENET, "lwf-mc"): 0, (IMAGENET, "icarl"): 68_000_000,
    }  # fmt: skip


def test_training_memory_is_a_gradient_a_momentum_and_a_teacher(table):
    cifar = table.columns[0]
    # ResNet-32: 461,232 convolution weights, a scale and a shift of 1,136 channels, 100 rows.
    parameters = 461_232 + 2 * 1_136 + 100 * (64 + 1)
    before = parameters - 10 * (64 + 1) + 2 * 1_136  # ten rows less, means and variances more
    icarl = cifar.training["icarl"]
    assert (icarl["gradients"], icarl["optimiser"]) == (4 * parameters, 4 * parameters)
    assert 0 <= icarl["teachers"] - 4 * before <= 8 * 64  # and a counter for each batch norm
    assert cifar.training["finetune"]["teachers"] == 0
    assert cifar.network_bytes == 4 * parameters


SMALL = MemoryProtocol(
    "small", "three classes, then two", "", (3, 2), 10, "lwf-mc", (),
    (Dataset("toys", "resnet8", "cifar", 12, ("raw", "png"), {}),),
)  # fmt: skip


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Workspaces of two increments by method and codec."""
    root = tmp_path_factory.mktemp("published")
    folders = [
        toys.write_folder(root / "1", range(3), count=12),
        toys.write_folder(root / "2", range(3, 5), count=12),
    ]
    made = {}

    def get(method, codec):
        if (method, codec) not in made:
            made[method, codec] = place = root / f"{method}-{codec}" / ".edgecil"
            for folder in folders:
                learn(folder, place, method=method, codec=codec, exemplars_total=10)
        return Workspace(made[method, codec])

    return get


def files(workspace):
    paths = [workspace.path(n) / MEMORY for n in workspace.versions()]
    return [p.stat().st_size if p.exists() else 0 for p in paths]


@pytest.mark.parametrize(
    ("method", "codec"), [("icarl", "raw"), ("icarl", "png"), ("lwf-mc", "raw"), ("m2kd", "raw")]
)
def test_plan_and_measurement_are_the_files(method, codec, learned):
    workspace = learned(method, codec)
    found = measured([result_of(workspace)], SMALL)
    assert not found.notes
    (((_, case), real),) = found.rows.items()
    assert case == Case(method, codec if method == "icarl" else None)
    assert list(real.compared.per_increment) == files(workspace)
    plan = planned(case, SMALL, SMALL.datasets[0])
    assert plan.exact == (codec == "raw" and method != "m2kd")
    if plan.exact:
        assert plan.compared.per_increment == real.compared.per_increment
        assert plan.fields == real.fields
    else:
        assert all(
            a >= b
            for a, b in zip(plan.compared.per_increment, real.compared.per_increment, strict=True)
        )
    held = planned_training(case, SMALL, SMALL.datasets[0])
    assert sum(held.values()) == pytest.approx(real.training_bytes, rel=0.02)


def test_results_of_other_conditions_are_left_out_and_named(learned):
    result = result_of(learned("icarl", "raw"))
    more = replace(SMALL, exemplars_total=20)
    assert "2 exemplars per class, the table has 4" in measured([result], more).notes[0]
    other = replace(SMALL, increments=(2, 3))
    found = measured([result], other)
    assert "2 increments to 5 classes with resnet8" in found.notes[0] and not found.rows


def test_of_several_seeds_the_largest_counts(learned):
    result = result_of(learned("icarl", "png"))
    fields = [dict(field) for field in result["kept_fields"]]
    fields[0]["bytes"] += 1
    total = result["kept_bytes"][-1] + 1
    larger = result | {"kept_fields": fields, "kept_bytes": [result["kept_bytes"][0], total]}
    for order in ([result, larger], [larger, result]):
        (found,) = measured(order, SMALL).rows.values()
        assert found.kept_bytes == total


def test_an_unknown_table_is_a_usage_error():
    with pytest.raises(UsageError, match="unknown memory protocol 'm2kd'") as caught:
        protocol("m2kd")
    assert "m2kd-table2" in caught.value.hint
