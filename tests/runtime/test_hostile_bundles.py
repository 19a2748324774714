"""No bundle, however made, crashes the app, opens other files or passes for a good one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime import hostile

from edgecil_runtime import BundleError, Classifier, RuntimeFault, cli
from edgecil_runtime import bundle as bundles
from edgecil_runtime.bundle import MANIFEST, MODEL, SELFTEST, open_bundle, read_selftest

TESTS = Path(__file__).parents[1]
# Examples of the fuzzers in the default suite, and in the long run of `make test-slow`.
FEW, MANY = 60, 5_000


@pytest.fixture
def own(colour, tmp_path):
    """A copy of the colour bundle that a test may change."""
    return shutil.copytree(colour, tmp_path / colour.name)


@pytest.mark.parametrize("name", hostile.CASES)
def test_a_hostile_bundle_is_refused_in_one_line(own, name, capsys):
    build, expected = hostile.CASES[name]
    build(own)
    assert cli.main(["selftest", str(own)]) == BundleError.exit_code
    shown = capsys.readouterr()
    assert shown.out == "" and expected in shown.err
    first, *hints = shown.err.splitlines()
    assert first.startswith("error: ") and len(first) < 600 and first.isprintable()
    assert len(hints) <= 1 and all(hint.startswith("hint: ") for hint in hints)


def test_no_hostile_bundle_takes_much_memory(colour, tmp_path):
    # A process of its own: its peak is that of the worst of them.
    code = f"""
import resource, shutil, sys
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent / "devices")!r}]
from runtime import hostile
from pathlib import Path
from edgecil_runtime.bundle import open_bundle, read_selftest
from edgecil_runtime.errors import BundleError
from edgecil_runtime.memory import usage
folders = [p for p in sorted(Path({str(tmp_path)!r}).iterdir()) if p.name in hostile.CASES]
before = usage().peak
for folder in folders:
    try:
        read_selftest(open_bundle(folder / "toy-v2"))
    except BundleError:
        continue
    sys.exit(f"accepted: {{folder.name}}")
print(len(folders), usage().peak - before)
"""
    for name, (build, _) in hostile.CASES.items():
        build(shutil.copytree(colour, tmp_path / name / "toy-v2"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, growth = map(int, done.stdout.split())
    assert count == len(hostile.CASES) >= 50
    assert growth < 150e6


def test_a_link_to_the_folder_is_followed_once(own, tmp_path):
    current = tmp_path / "current"
    current.symlink_to(own)
    bundle = open_bundle(current)
    current.unlink()
    current.symlink_to(tmp_path)
    assert bundle.path == own and read_selftest(bundle).images.shape == (3, 8, 8, 3)


def test_unlisted_files_are_never_opened(own):
    os.mkfifo(own / "waits_for_ever")
    (own / "link").symlink_to("/dev/zero")
    assert Classifier(own).selftest().images == 3


@pytest.mark.parametrize("way", ["swapped", "written to", "linked"])
def test_a_model_that_changes_between_the_check_and_the_load(own, monkeypatch, way):
    import onnxruntime

    real = onnxruntime.InferenceSession

    def meanwhile(*arguments, **options):
        model = own / MODEL
        if way == "swapped":
            shutil.copy(model, own / "other")
            os.replace(own / "other", model)
        elif way == "linked":
            model.rename(own.parent / "elsewhere")
            model.symlink_to(own.parent / "elsewhere")
        else:
            with open(model, "r+b") as file:
                file.write(file.read(1))
        return real(*arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", meanwhile)
    with pytest.raises(BundleError, match=r"changed while|symbolic link"):
        Classifier(own)


def test_a_selftest_that_changes_after_the_check(own):
    bundle = open_bundle(own)
    data = bytearray((own / SELFTEST).read_bytes())
    data[len(data) // 2] ^= 1
    (own / SELFTEST).write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256 does not match"):
        read_selftest(bundle)


def test_too_little_memory_for_a_selftest_is_not_a_bad_bundle(own, monkeypatch):
    bundle = open_bundle(own)

    def no_memory(_):
        raise MemoryError

    monkeypatch.setattr(bundles, "_arrays", no_memory)
    with pytest.raises(MemoryError):
        read_selftest(bundle)


def test_a_file_that_grows_while_it_is_read(own, monkeypatch):
    size = (own / MANIFEST).stat().st_size
    with pytest.raises(BundleError, match="at most"):
        bundles.read_plain_file(own / MANIFEST, size - 1)
    monkeypatch.setattr(os, "fstat", lambda _: os.stat_result((0o100644, *[0] * 9)))
    with pytest.raises(BundleError, match="grew while"):
        bundles.read_plain_file(own / MANIFEST, 10)


def test_a_disk_that_fails(own, monkeypatch):
    (own / MODEL).chmod(0)
    if os.geteuid():
        with pytest.raises(BundleError, match="Permission denied"):
            open_bundle(own)

    class Broken:
        def update(self, _):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(bundles, "sha256", lambda *_: Broken())
    with pytest.raises(BundleError, match="Input/output error"):
        bundles._verify(own / SELFTEST, open_entry(own, SELFTEST))


def open_entry(bundle, name):
    from edgecil_runtime.manifest import FileEntry

    return FileEntry(**json.loads((bundle / MANIFEST).read_text())["files"][name])


# Fuzzers


def mutations():
    """A few damages: flip a bit, cut, insert, repeat or blank a stretch."""
    place, length = st.floats(0, 1, exclude_max=True), st.integers(1, 64)
    return st.lists(
        st.tuples(st.sampled_from(["flip", "cut", "insert", "repeat", "blank", "end"]),
                  place, length, st.binary(min_size=1, max_size=8)),
        min_size=1, max_size=3,
    )  # fmt: skip


def mutated(data, changes):
    """Return ``data`` after the damages."""
    for kind, place, length, extra in changes:
        at = int(place * len(data))
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ 1 << length % 8]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + length :]
        elif kind == "insert":
            data = data[:at] + extra + data[at:]
        elif kind == "repeat":
            data = data[: at + length] + data[at:]
        elif kind == "blank":
            data = data[:at] + bytes(len(data[at : at + length])) + data[at + length :]
        elif kind == "end":
            data = data[:at]
    return data


def fuzzing(examples):
    return settings(
        max_examples=examples, deadline=None, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )  # fmt: skip


PROBE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def check_damage(colour, folder, examples):
    """Damage that nobody covers up: refused, or every answer is what it was."""
    right = Classifier(colour)
    scores, labels = right.scores(PROBE), right.labels
    good = {name: (colour / name).read_bytes() for name in (MANIFEST, MODEL, SELFTEST)}

    @fuzzing(examples)
    @given(st.sampled_from(sorted(good)), mutations())
    def damage(name, changes):
        for each, data in good.items():
            (folder / each).write_bytes(mutated(data, changes) if each == name else data)
        try:
            found = Classifier(folder)
            found.selftest()
        except RuntimeFault as fault:
            assert fault.message.isprintable() and len(fault.message) < 600
        else:
            # Only the spaces between the values of the manifest may change unnoticed.
            assert name == MANIFEST or (folder / name).read_bytes() == good[name]
            assert found.labels == labels
            np.testing.assert_array_equal(found.scores(PROBE), scores)

    damage()


def check_forgery(colour, folder, examples):
    """Damage whose hashes were made right again: no way but a typed, one-line refusal."""
    good = {name: (colour / name).read_bytes() for name in (MANIFEST, MODEL, SELFTEST)}
    whole = json.loads(good[MANIFEST])

    def places(value, path=()):
        yield path
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in inner:
            yield from (
                places(item, (*path, key)) if isinstance(item, (dict, list)) else [(*path, key)]
            )

    strange = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]),
        st.just({}), st.integers(10**18, 10**40), st.just("\x1b[2J"), st.just(-1),
        st.recursive(st.none(), lambda inner: st.lists(inner, max_size=3), max_leaves=20),
    )  # fmt: skip

    @fuzzing(examples)
    @given(
        st.sampled_from([MODEL, SELFTEST, MANIFEST]),
        mutations(),
        st.sampled_from([p for p in places(whole) if p]),
        strange,
    )
    def forge(name, changes, place, value):
        for each, data in good.items():
            (folder / each).write_bytes(data)
        if name == MANIFEST:
            hostile.edit(folder, lambda manifest: assign(manifest, place, value))
        else:
            hostile.put(folder, name, mutated(good[name], changes))
        try:
            read_selftest(open_bundle(folder))
        except RuntimeFault as fault:
            assert fault.message.isprintable() and len(fault.message) < 600

    forge()


def assign(data, place, value):
    for key in place[:-1]:
        data = data[key]
    data[place[-1]] = value


def test_damaged_bundles_never_answer_wrongly(colour, own):
    check_damage(colour, own, FEW)


def test_forged_bundles_never_crash_the_reader(colour, own):
    check_forgery(colour, own, FEW)


@pytest.mark.slow
def test_ten_thousand_mutated_bundles(colour, own):
    check_damage(colour, own, MANY)
    check_forgery(colour, own, MANY)


@pytest.mark.slow
def test_forged_models_in_isolation_never_reach_the_app(colour, own):
    """onnxruntime itself on models that parse but are wrong: a crash there is a typed error."""
    good = (own / MODEL).read_bytes()
    outcomes = []

    @fuzzing(200)
    @given(mutations())
    def forge(changes):
        hostile.put(own, MODEL, mutated(good, changes))
        try:
            with Classifier(own, memory_limit="200MB", isolate=True, deadline=10) as classifier:
                outcomes.append(classifier.scores(PROBE).shape)
        except RuntimeFault as fault:
            assert fault.message.isprintable()
            outcomes.append(type(fault).__name__)

    forge()
    assert len(outcomes) >= 200
