"""One file: planned, measured and reported bytes agree, and only what was declared is in it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from edgecil.errors import UsageError, WorkspaceError
from edgecil.memory.fields import COUNTS, IMAGES, Dimensions, Field, exemplar_fields
from edgecil.memory.plan import MemoryPlan, plan
from edgecil.memory.store import Store
from edgecil_runtime import container

TREE = {"stem.weight": (4, 3, 3, 3), "stage.0.weight": (8, 4, 1, 1), "scale": ()}
RICH = (
    *exemplar_fields("raw"),
    Field("exemplars.held_out", ("K",), "not trained on", "BOOL"),
    Field("importance", "conv", "how much each weight matters"),
    Field("snapshots", "conv", "earlier weights", "F16", per_increment=True),
    Field("rows", ("C_new", "D"), "head rows that teach", per_increment=True),
    Field("prototypes", ("C", "D"), "class means", scope="classifier"),
    Field("scale", (), "cosine scale"),
)


def values(field, dimensions, increment=None, seed=0):
    """Return an array or tree that fits a declaration, of random bits where they matter."""
    random = np.random.default_rng(seed)
    dtype = {"F32": np.float32, "F16": np.float16, "U8": np.uint8, "U16": np.uint16}
    dtype = dtype.get(field.dtype, np.bool_)
    shape = dimensions.shapes(field, increment)
    if isinstance(shape, dict):
        return {n: random.normal(size=s).astype(dtype) for n, s in shape.items()}
    return random.integers(0, 2 if dtype is np.bool_ else 255, shape).astype(dtype)


def filled(fields, dimensions):
    store = Store(fields)
    count = len(dimensions.increments)
    for field in fields:
        for increment in range(1, count + 1) if field.per_increment else (None,):
            store.write(field.name, values(field, dimensions, increment), increment)
    return store


def equal(a, b):
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[n], b[n]) for n in a)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@settings(max_examples=60, deadline=None)
@given(
    increments=st.lists(st.integers(1, 20), min_size=1, max_size=10),
    exemplars=st.integers(0, 50),
    features=st.integers(1, 70),
    size=st.integers(1, 12),
    chosen=st.sets(st.sampled_from([f.name for f in RICH])),
)
def test_plan_is_file_is_report(tmp_path_factory, increments, exemplars, features, size, chosen):
    fields = tuple(f for f in RICH if f.name in chosen)
    dimensions = Dimensions(
        tuple(increments), features, size, size, exemplars=exemplars, trees={"conv": TREE}
    )
    store = filled(fields, dimensions)
    path = tmp_path_factory.mktemp("store") / "memory.safetensors"
    written = store.save(path)
    planned, report = plan(fields, dimensions), store.report()
    assert planned == report == Store.load(path, fields).report()
    assert planned == plan(fields, dimensions, size="least")
    assert written == report.total_bytes == (path.stat().st_size if path.exists() else 0)
    assert path.exists() == bool(chosen)
    assert sum(row["bytes"] for row in report.fields()) == report.kept_bytes
    assert report.kept_bytes + report.classifier_bytes == written


@pytest.mark.parametrize("codec", ["raw", "png", "webp-lossless", "jpeg-75", "jpeg-100"])
@pytest.mark.parametrize("classes", [1, 9, 10, 11, 99, 100])
def test_bound_is_at_least_the_file_which_is_the_report(tmp_path, codec, classes):
    fields = exemplar_fields(codec)
    dimensions = Dimensions((classes,), 64, 16, 16, exemplars=classes)
    store = Store(fields)
    noise = np.random.default_rng(classes).integers(0, 256, (classes, 16, 16, 3), dtype=np.uint8)
    store.write(IMAGES, noise)
    store.write(COUNTS, np.ones(classes, np.uint16))
    size = store.save(tmp_path / "m")
    planned = plan(fields, dimensions)
    assert size == store.report().kept_bytes == (tmp_path / "m").stat().st_size
    assert plan(fields, dimensions, size="least").kept_bytes <= size <= planned.kept_bytes
    assert planned.exact == (codec == "raw")
    assert store.report().exact
    assert (size == planned.kept_bytes) == (codec == "raw")


def test_values_survive_the_file_bit_for_bit(tmp_path):
    dimensions = Dimensions((3, 1, 2), 5, 4, 4, exemplars=6, trees={"conv": TREE})
    store = filled(RICH, dimensions)
    store.save(tmp_path / "m")
    loaded = Store.load(tmp_path / "m", RICH)
    assert loaded.names == store.names == tuple(f.name for f in RICH)
    assert loaded.increments("rows") == (1, 2, 3)
    for field in RICH:
        for increment in (1, 2, 3) if field.per_increment else (None,):
            wanted = values(field, dimensions, increment)
            assert equal(loaded.read(field.name, increment), wanted)
            assert equal(store.read(field.name, increment), wanted)
    assert loaded.encode() == store.encode()
    loaded.read("prototypes")[:] = 0  # may be changed, and changes nothing
    assert equal(loaded.read("prototypes"), store.read("prototypes"))


def test_what_is_kept_does_not_follow_later_changes_of_the_array():
    store = Store((Field("x", (2,), "test"),))
    array = np.ones(2, np.float32)
    store.write("x", array)
    array[:] = 7
    assert store.read("x").tolist() == [1, 1]


def test_the_safetensors_package_reads_the_file(tmp_path):
    dimensions = Dimensions((3, 1), 5, 4, 4, exemplars=6, trees={"conv": TREE})
    store = filled((*RICH, Field("photo", (2, 8, 8, 3), "test", "U8", "png")), dimensions)
    store.save(tmp_path / "m.safetensors")
    arrays = load_file(tmp_path / "m.safetensors")
    assert equal(arrays["prototypes"], store.read("prototypes"))
    assert equal(arrays[IMAGES], store.read(IMAGES))
    assert {"rows@1", "rows@2", "snapshots@2", "snapshots:tree", "photo:lengths"} <= set(arrays)
    assert arrays["snapshots@1"].shape == (4 * 27 + 32 + 1,)


def test_an_empty_store_is_no_file(tmp_path):
    fields = (*exemplar_fields(), Field("x", (1,), "test"))
    assert Store(()).report() == Store(fields).report() == plan((), Dimensions((1,), 1, 1, 1))
    assert Store(fields).report() == MemoryPlan()
    (tmp_path / "m").write_bytes(b"of an earlier attempt")
    assert Store(fields).save(tmp_path / "m") == 0
    assert not (tmp_path / "m").exists()
    assert Store.load(tmp_path / "m", fields).names == ()


def test_classifier_fields_are_not_kept_memory(tmp_path):
    prototypes = Field("prototypes", ("C", "D"), "class means", scope="classifier")
    dimensions = Dimensions((4,), 3, 8, 8)
    alone = filled((prototypes,), dimensions)
    assert alone.report().kept_bytes == 0
    assert alone.report().fields() == []
    assert alone.report().classifier_bytes == alone.save(tmp_path / "m")
    scale = Field("scale", (), "test")
    both, kept = filled((prototypes, scale), dimensions), filled((scale,), dimensions)
    assert both.report().kept_bytes == kept.report().kept_bytes == kept.save(tmp_path / "n")


def test_undeclared_writes_are_refused():
    store = Store(RICH)
    with pytest.raises(KeyError, match=r"'fisher' was not declared \(declared: exemplars.images"):
        store.write("fisher", np.zeros(3, np.float32))
    with pytest.raises(KeyError, match="was not declared"):
        store.read("fisher")
    with pytest.raises(KeyError, match="holds nothing"):
        store.read("importance")
    with pytest.raises(ValueError, match="declared twice"):
        Store((Field("x", (1,), "a"), Field("x", (2,), "b")))
    assert store.names == ()


@pytest.mark.parametrize(
    ("name", "value", "increment", "message"),
    [
        ("scale", np.zeros(1, np.float32), None, r"shape \(1,\) is not \(\)"),
        ("scale", np.zeros((), np.float64), None, "dtype F64 is not F32"),
        ("scale", np.zeros((), np.complex64), None, "complex64 cannot be stored"),
        ("scale", np.zeros((), np.float32), 1, "one array, no increment"),
        ("rows", np.zeros((3, 5), np.float32), None, "one array per increment"),
        ("rows", np.zeros((3, 5), np.float32), 0, "count from 1"),
        (IMAGES, np.zeros((6, 4, 4, 1), np.uint8), None, "shape"),
        (IMAGES, np.zeros((5, 4, 4, 3), np.uint8), None, r"with \{'K': 6\}"),
        ("prototypes", np.zeros((2, 5), np.float32), None, r"with \{'C': 3\}"),
        ("importance", np.zeros(4, np.float32), None, "a tree takes a mapping"),
        ("importance", {}, None, "the tree is empty"),
        ("importance", {"a": np.zeros(4)}, None, "dtype F64"),
        ("snapshots", {"other": np.zeros(2, np.float16)}, 2, "differs from that of other"),
    ],
)
def test_writes_that_contradict_the_declaration_are_refused(name, value, increment, message):
    store = Store(RICH)
    store.write("exemplars.held_out", np.zeros(6, np.bool_))
    store.write(COUNTS, np.array([2, 2, 2], np.uint16))
    store.write("snapshots", {"a": np.zeros(2, np.float16)}, 1)
    before = store.encode()
    with pytest.raises(ValueError, match=message):
        store.write(name, value, increment)
    assert store.encode() == before


def test_copies_are_verbatim():
    fields = (Field("photos", (2, 16, 16, 3), "test", "U8", "jpeg-50"), RICH[4])
    old, new = Store(fields), Store(fields)
    old.write("photos", np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8))
    for increment in (1, 2):
        old.write(
            "snapshots", values(RICH[4], Dimensions((1,), 1, 1, 1, trees={"conv": TREE})), increment
        )
    new.copy("photos", old)
    new.copy("snapshots", old)
    assert new.encode() == old.encode()
    with pytest.raises(ValueError, match="declare it differently"):
        Store((Field("photos", (2, 16, 16, 3), "test", "U8", "png"),)).copy("photos", old)
    with pytest.raises(KeyError, match="nothing to copy"):
        old.copy("photos", Store(fields))


def test_a_file_is_read_with_the_codec_it_was_written_with(tmp_path):
    store = Store(exemplar_fields("jpeg-75"))
    store.write(IMAGES, np.zeros((2, 8, 8, 3), np.uint8))
    store.save(tmp_path / "m")
    for now in ("raw", "jpeg-75", "png"):
        loaded = Store.load(tmp_path / "m", exemplar_fields(now))
        assert loaded.field(IMAGES).codec == "jpeg-75"
        assert np.array_equal(loaded.read(IMAGES), store.read(IMAGES))
    raw = Store(exemplar_fields("raw"))
    raw.write(IMAGES, np.zeros((2, 8, 8, 3), np.uint8))
    raw.save(tmp_path / "r")
    assert Store.load(tmp_path / "r", exemplar_fields("png")).field(IMAGES).codec == "raw"


def test_damaged_files_are_named(tmp_path):
    fields = exemplar_fields("png")
    store = Store(fields)
    store.write(IMAGES, np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8))
    store.write(COUNTS, np.array([3], np.uint16))
    path = tmp_path / "memory.safetensors"
    store.save(path)
    good = path.read_bytes()
    for cut in (0, 5, 50, len(good) - 1):
        path.write_bytes(good[:cut])
        with pytest.raises(WorkspaceError, match=r"memory\.safetensors"):
            Store.load(path, fields)
    path.write_bytes(good[:-40] + bytes(40))
    with pytest.raises(WorkspaceError, match=r"memory\.safetensors: field exemplars.images is dam"):
        Store.load(path, fields).read(IMAGES)


@pytest.mark.parametrize(
    "arrays",
    [
        {"other": np.zeros(3, np.float32)},
        {"scale": np.zeros(3, np.float32)},
        {"scale": np.zeros((), np.float16)},
        {"scale@1": np.zeros((), np.float32)},
        {"rows": np.zeros((1, 1), np.float32)},
        {"rows@one": np.zeros((1, 1), np.float32)},
        {"scale:lengths": np.zeros((), np.float32)},
    ],
)
def test_files_of_something_else_are_refused(tmp_path, arrays):
    container.write(tmp_path / "m", arrays)
    with pytest.raises(WorkspaceError, match="does not fit its method"):
        Store.load(tmp_path / "m", RICH)


def test_a_tree_without_its_index_is_damaged(tmp_path):
    for extra in ({}, {"importance:tree": np.zeros(5, np.uint8)}):
        container.write(tmp_path / "m", {"importance": np.zeros(3, np.float32), **extra})
        with pytest.raises(WorkspaceError, match="field importance is damaged"):
            Store.load(tmp_path / "m", RICH).read("importance")


def test_codecs_of_a_newer_version_are_refused(tmp_path):
    container.write(tmp_path / "m", {"scale": np.zeros((), np.float32)}, {"scale": "quantum"})
    with pytest.raises(WorkspaceError, match="unknown codec 'quantum'"):
        Store.load(tmp_path / "m", RICH)


def test_plan_refuses_an_unknown_codec():
    with pytest.raises(UsageError, match="unknown codec"):
        plan((Field("x", (1,), "test", codec="zip"),), Dimensions((1,), 1, 1, 1))
