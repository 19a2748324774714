"""The memory report and the dry run: planned, measured and filed bytes agree."""

from __future__ import annotations

import csv
import io

import pytest
import small_runs
import toys
from small_runs import QUICK, learn, tree

from edgecil import api, registry
from edgecil.errors import WorkspaceError
from edgecil.learning import planning
from edgecil.memory.fields import IMAGES
from edgecil.versions import load_version
from edgecil.workspace import MEMORY, Workspace

pytestmark = pytest.mark.usefixtures("small_generators")

METHODS = [name for name, info in registry.methods().items() if info.kind == "method"]


def kept_file(root):
    """Return the bytes of the file of kept memory of the current version; 0 without one."""
    place = Workspace(root)
    path = place.path(place.current()) / MEMORY
    return path.stat().st_size if path.exists() else 0


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Two increments of classes with 12, 3 and 7 images."""
    root = tmp_path_factory.mktemp("uneven")
    first = toys.write_folder(root / "1", [0], count=12)
    toys.write_folder(first, [1], count=3)
    return first, toys.write_folder(root / "2", [2], count=7)


@pytest.fixture(scope="module")
def learned(tmp_path_factory, uneven):
    """Workspaces by method and settings after both increments, learned once."""
    made = {}

    def get(method, **settings):
        key = (method, *sorted(settings.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(method) / ".edgecil"
            for folder in uneven:
                learn(folder, made[key], method=method, options=toys.small(method), **settings)
        return made[key]

    return get


def row_of(report, method):
    (row,) = [r for r in report.rows if r.method == method]
    return row


@pytest.mark.parametrize("method", METHODS)
def test_the_row_of_the_method_used_is_measured_and_the_others_are_planned(method, learned, uneven):
    report = api.report_memory(workspace=learned(method))
    assert sorted(r.method for r in report.rows) == sorted(METHODS)
    assert {r.method for r in report.rows if r.basis == "measured"} == {method}
    referenced = 0
    if method == "joint":
        referenced = sum(p.stat().st_size for folder in uneven for p in folder.glob("*/*"))
    assert row_of(report, method).kept_bytes == kept_file(learned(method)) + referenced
    first = report.rows[0]
    assert (first.method, first.kept_bytes) == ("lwf-mc", 0)
    sizes = [r.kept_bytes for r in report.rows]
    assert sizes == sorted(sizes)
    assert report.classifier_bytes == sum(
        a.nbytes for a in small_runs.weights(learned(method)).values()
    )


LIMITS = [
    {"exemplars_per_class": 5}, {"exemplars_total": 10}, {"memory_budget": 40_000},
    {"memory_budget": 10**7},
]  # fmt: skip


@pytest.mark.parametrize("limit", LIMITS, ids=str)
@pytest.mark.parametrize("codec", ["raw", "png", "webp-lossless"])
def test_a_plan_is_exact_for_fixed_codecs_and_a_bound_for_others(limit, codec, learned):
    # Planned while another method is used, then measured on what the method really keeps.
    elsewhere = api.report_memory(workspace=learned("lwm", codec=codec, **limit))
    root = learned("icarl", codec=codec, **limit)
    for method in ("icarl", "rehearsal"):
        planned = row_of(elsewhere, method)
        assert planned.basis == "plan"
        assert planned.exact == (codec == "raw")
        if codec == "raw":
            assert planned.kept_bytes == kept_file(root)
        else:
            assert kept_file(root) <= planned.kept_bytes
        if "memory_budget" in limit:
            assert planned.kept_bytes <= limit["memory_budget"]


def test_the_dry_run_plans_what_is_then_kept(learned, uneven, tmp_path):
    for limit in LIMITS:
        root = tmp_path / str(limit) / ".edgecil"
        for folder in uneven:
            settings = {**QUICK, "method": "rehearsal", "codec": "raw", **limit}
            plan = api.plan(folder, workspace=root, **settings)
            learn(folder, root, **settings)
            assert plan.kept["basis"] == "plan"
            assert plan.kept["bytes"] == kept_file(root)
            assert sum(f["bytes"] for f in plan.kept["fields"]) == kept_file(root)


VARIANTS = [(name, {}) for name in METHODS] + [
    ("lucir", {"balanced_finetuning": True}), ("abd", {"collapse": "retry"}),
    ("icarl+mnemonics", {}), ("eeil", {"finetuned": "head"}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "options"), VARIANTS, ids=str)
def test_a_dry_run_beside_old_classes_begins_every_phase(method, options, learned, tmp_path):
    folder = toys.write_folder(tmp_path / "3", [3, 4], count=4)
    root = learned(method.partition("+")[0])
    settings = {"options": {**toys.small(method), **options}, **QUICK}
    plan = api.plan(folder, workspace=root, method=method, **settings)
    assert plan.classes_old == 3 and plan.kept["bytes"] >= 0
    steps = sum(phase["steps"] for phase in plan.phases)
    assert (plan.seconds > 0) == (steps > 0)
    if method == "eeil":  # as many of each class as of the new ones there are
        assert [phase["images"] for phase in plan.phases] == [30, 15]


def test_each_phase_is_timed(learned, tmp_path, monkeypatch):
    folder = toys.write_folder(tmp_path / "3", [3, 4], count=4)
    rates = iter([0.25, 3.0])
    monkeypatch.setattr(planning, "_seconds_per_step", lambda run: next(rates))
    plan = api.plan(folder, workspace=learned("abd"), options=toys.small("abd"), **QUICK)
    synthesis, training = (phase["steps"] for phase in plan.phases)
    assert plan.seconds == 0.25 * synthesis + 3.0 * training


def test_joint_counts_the_files_it_refers_to(learned, uneven):
    planned = row_of(api.report_memory(workspace=learned("lwm")), "joint")
    files = sum(p.stat().st_size for folder in uneven for p in folder.glob("*/*"))
    assert dict(planned.fields)["image files"] == files
    measured = row_of(api.report_memory(workspace=learned("joint")), "joint")
    assert dict(measured.fields)["image files"] == files
    assert measured.kept_bytes <= planned.kept_bytes


def test_methods_that_a_budget_excludes_are_named(learned):
    report = api.report_memory(workspace=learned("lwm", memory_budget=200))
    left_out = [r for r in METHODS if r not in {row.method for row in report.rows}]
    recipes = {name: registry.build(name) for name in METHODS}
    keeping = [name for name, recipe in recipes.items() if recipe.fields and name != "joint"]
    assert {"icarl", "rehearsal", "m2kd"} <= set(left_out)
    assert left_out == keeping
    assert [note.split()[0] for note in report.notes] == left_out


def test_training_memory_is_reported_apart(learned):
    for method in ("finetune", "icarl", "joint", "lwf", "lwf-mc", "lwm", "ncm", "rehearsal"):
        row = row_of(api.report_memory(workspace=learned(method)), method)
        elsewhere = row_of(api.report_memory(workspace=learned("finetune")), method)
        if method == "ncm":  # nothing is trained in a later increment
            assert (row.training_bytes, elsewhere.training_bytes) == (0, 0)
            continue
        # A gradient and a momentum buffer for each weight; and the previous network.
        net = sum(
            a.nbytes for n, a in small_runs.weights(learned(method)).items() if n.startswith("net/")
        )
        teachers = method in ("lwf", "lwf-mc", "lwm", "icarl")
        for found in (row.training_bytes, elsewhere.training_bytes):
            assert 0.9 * (2 + teachers) * net < found <= (2 + teachers) * net


def test_json_and_csv_tell_the_same(learned):
    report = api.report_memory(workspace=learned("icarl"))
    data = report.to_json()
    assert {"method", "kept_bytes", "fields", "training_bytes", "basis"} <= set(data["methods"][0])
    for row in data["methods"]:
        assert sum(f["bytes"] for f in row["fields"]) == row["kept_bytes"]
    lines = list(csv.DictReader(io.StringIO(report.to_csv())))
    totals = {r["method"]: int(r["bytes"]) for r in lines if r["field"] == "total"}
    assert totals == {row["method"]: row["kept_bytes"] for row in data["methods"]}


def test_without_a_workspace_there_is_no_report(tmp_path):
    with pytest.raises(WorkspaceError, match="no workspace"):
        api.report_memory(workspace=tmp_path / ".edgecil")
    assert not list(tmp_path.iterdir())


class TestDryRun:
    def test_it_writes_nothing(self, folders, tmp_path, base):
        api.plan(folders[0], workspace=tmp_path / "none", **QUICK)
        assert not (tmp_path / "none").exists()
        root = base("icarl")
        before = tree(root)
        stamps = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
        images = tree(folders[1])
        api.plan(folders[1], workspace=root, method="icarl")
        assert tree(root) == before
        assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == stamps
        assert tree(folders[1]) == images

    def test_what_it_says(self, folders, base):
        plan = api.plan(folders[1], workspace=base("icarl"), epochs=3, batch_size=10)
        assert (plan.method, plan.arch, plan.image_size) == ("icarl", "resnet8", 32)
        assert plan.classes_new == ("class-2", "class-3")
        assert plan.classes_old == 2
        assert (plan.images, plan.kept_images) == (24, 24)
        (phase,) = plan.phases
        assert phase == {"name": "train", "epochs": 3, "steps": 15, "images": 48}
        assert plan.seconds > 0
        assert plan.training_bytes["teachers"] > 0
        assert plan.training_bytes["gradients"] > 0
        assert plan.disk_bytes > plan.kept["bytes"] > 0
        assert plan.precision in ("float32", "bfloat16")

    def test_the_plan_does_not_change_what_is_then_learned(self, folders, base, bases):
        root = base()
        api.plan(folders[1], workspace=root, **QUICK)
        planned = learn(folders[1], root)
        again = small_runs.copied(bases("lwm"), root.parent / "again")
        learn(folders[1], again)
        assert planned.manifest.version == 2
        assert small_runs.equal(small_runs.weights(root), small_runs.weights(again))


@pytest.mark.parametrize(
    ("given", "stored", "noted"),
    [
        ({"method": "icarl", "memory_budget": 8000}, "jpeg-75", True),
        ({"method": "icarl", "memory_budget": 8000, "codec": "png"}, "png", False),
        ({"method": "icarl", "exemplars_per_class": 2}, "webp-lossless", False),
        ({"method": "icarl"}, "webp-lossless", False),
        ({"method": "lwm", "memory_budget": 8000}, "jpeg-75", False),
    ],
)
def test_only_a_limit_in_bytes_stores_jpegs_where_nothing_is_said(
    given, stored, noted, learned, uneven
):
    root = learned(**given)
    last, first = Workspace(root).increments(2)
    assert first.kept["codec"] == last.kept["codec"] == stored
    said = [text for text in first.notes if text.startswith("exemplars are stored as jpeg-75")]
    assert len(said) == noted
    assert not any(text.startswith("exemplars are stored") for text in last.notes)
    if any(field["name"] == IMAGES for field in last.kept["fields"]):
        _, model = load_version(Workspace(root))
        assert model.kept.field(IMAGES).codec == stored


def test_exemplars_stay_as_they_were_stored_when_another_kind_of_limit_is_set(uneven, tmp_path):
    root = tmp_path / ".edgecil"
    learn(uneven[0], root, method="icarl", exemplars_per_class=2)
    done = learn(uneven[1], root, memory_budget=20_000)
    assert done.manifest.kept["codec"] == "webp-lossless"
