"""Bundles are written whole and read only when every byte is as recorded."""

import copy
import json
import os
import shutil
import zipfile

import numpy as np
import pytest

from edgecil_runtime.bundle import (
    MANIFEST,
    MODEL,
    SELFTEST,
    SelfTest,
    encode_selftest,
    open_bundle,
    read_selftest,
    write_bundle,
)
from edgecil_runtime.errors import BundleError, InputError, RuntimeFault
from edgecil_runtime.manifest import (
    MAX_MANIFEST_BYTES,
    SEAL,
    Manifest,
    Target,
    decode_manifest,
    sealed,
)


@pytest.fixture
def own(colour, tmp_path):
    """A copy of the colour bundle that a test may damage."""
    return shutil.copytree(colour, tmp_path / colour.name)


def edit(bundle, change):
    """Change the manifest as an attacker would: its digest is right again."""
    data = json.loads((bundle / MANIFEST).read_text())
    change(data)
    (bundle / MANIFEST).write_text(json.dumps(sealed(data)))


def test_a_bundle_comes_back_as_written(own):
    bundle = open_bundle(own)
    manifest = bundle.manifest
    assert own.name == manifest.directory_name == "toy-v2"
    assert [label.name for label in manifest.labels] == ["red", "green", "blue"]
    assert [label.increment for label in manifest.labels] == [1, 1, 2]
    assert set(manifest.files) == {MODEL, SELFTEST}
    assert manifest.files[MODEL].bytes == bundle.model_path.stat().st_size
    again = Manifest.from_json(json.loads(json.dumps(manifest.to_json())))
    assert again == manifest
    text = json.loads((own / MANIFEST).read_text())
    assert text == sealed(json.loads(json.dumps(manifest.to_json())))


def test_the_target_of_a_bundle_is_read(own):
    target = {"name": "rpi4", "threads": 2, "memory_bytes": 500_000_000}
    edit(own, lambda m: m.update(target=target))
    manifest = open_bundle(own).manifest
    assert manifest.target == Target("rpi4", 2, 500_000_000)
    assert manifest.to_json()["target"] == target


def test_names_in_any_language_stay_readable(tmp_path, toy):
    path = toy.colour_bundle(tmp_path, name="a", version=1)
    files = {name: (path / name).read_bytes() for name in (MODEL, SELFTEST)}
    manifest = toy.manifest_json(("Grünfink", "猫", "red"))
    written = write_bundle(tmp_path, manifest, files)
    assert "猫" in (written / MANIFEST).read_text("utf-8")
    assert open_bundle(written).manifest.labels[1].name == "猫"


@pytest.mark.parametrize("name", [MODEL, SELFTEST])
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_one_flipped_bit_is_refused(own, name, place):
    data = bytearray((own / name).read_bytes())
    data[int(place * len(data)) if place >= 0 else -1] ^= 1
    (own / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name}: SHA-256 does not match"):
        open_bundle(own)


def test_truncated_grown_and_missing_files_are_refused(own):
    data = (own / MODEL).read_bytes()
    for changed in (data[:-1], data + b"\0", b""):
        (own / MODEL).write_bytes(changed)
        with pytest.raises(BundleError, match=f"expected {len(data)} bytes, got {len(changed)}"):
            open_bundle(own)
    (own / MODEL).unlink()
    with pytest.raises(BundleError, match=r"model\.onnx: No such file"):
        open_bundle(own)


@pytest.mark.parametrize("name", [MODEL, SELFTEST, MANIFEST])
def test_links_and_folders_are_refused(own, tmp_path, name):
    outside = tmp_path / "outside"
    (own / name).rename(outside)
    (own / name).symlink_to(outside)
    with pytest.raises(BundleError, match="symbolic link"):
        open_bundle(own)
    (own / name).unlink()
    (own / name).mkdir()
    with pytest.raises(BundleError, match="not a plain file"):
        open_bundle(own)
    (own / name).rmdir()
    os.mkfifo(own / name)  # reading it would hang
    with pytest.raises(BundleError, match="not a plain file"):
        open_bundle(own)


def test_a_path_that_is_no_bundle(tmp_path, own):
    with pytest.raises(InputError, match="no such bundle"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no such bundle"):
        open_bundle(own / MODEL)
    with pytest.raises(InputError, match="not a bundle"):
        open_bundle(tmp_path)


def test_a_newer_schema_says_what_to_do(own):
    edit(own, lambda m: m.update(schema=2, labels="another shape"))
    with pytest.raises(BundleError, match="has schema 2, this runtime reads up to 1") as caught:
        open_bundle(own)
    assert caught.value.hint == "pip install --upgrade edgecil-runtime"


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/b", "..", ".hidden", "", "a\\b", "a\0b", "a\n", "é", "x" * 101],
)
def test_file_names_that_leave_the_folder(own, name):
    entry = {"sha256": "0" * 64, "bytes": 0}
    edit(own, lambda m: m["files"].update({name: entry}))
    with pytest.raises(BundleError, match="without a folder"):
        open_bundle(own)
    with pytest.raises(BundleError, match="without a folder"):
        write_bundle(own.parent, {}, {name: b""})


def test_a_required_file_must_be_declared(own):
    for name in (MODEL, SELFTEST):
        data = json.loads((own / MANIFEST).read_text())
        del data["files"][name]
        (own / "copy.json").write_text(json.dumps(sealed(data)))
        other = shutil.copytree(own, own.parent / f"without_{name}")
        (other / "copy.json").rename(other / MANIFEST)
        with pytest.raises(BundleError, match=f"does not list {name}"):
            open_bundle(other)


HOSTILE = [
    *[(("schema",), v) for v in (0, -1, True, 1.0, "1", None, [])],
    *[(("name",), v) for v in ("", "a/b", "..", 3, "a b", "x" * 200)],
    *[(("version",), v) for v in (-1, 1.5, True, "2", 10**30)],
    *[(("parent",), v) for v in (-1, "1", False)],
    *[(("method",), v) for v in ("", 4, "a\nb", "\x1b[31m", "\x9b31m", "\ud800", None)],
    *[(("labels",), v) for v in ([], {}, "ab", None, [1], [{"name": "a"}])],
    (("labels", 0, "name"), ""),
    (("labels", 0, "name"), "green"),
    (("labels", 0, "name"), 7),
    (("labels", 0, "increment"), 0),
    (("labels", 0, "increment"), True),
    (("preprocess",), []),
    *[(("preprocess", "size"), v) for v in (0, 9, "8", 10**9)],
    *[(("preprocess", "mean"), v) for v in ([0, 0], [0, 0, "x"], [0, 0, True], 0, [0, 0, 10**400])],
    *[(("preprocess", "std"), v) for v in ([1, 1, 0], [1, 1, -1])],
    *[(("score_kind",), v) for v in ("softmax", [], 1)],
    *[(("precision",), v) for v in ("int4", None)],
    *[(("fixed_input",), v) for v in (0, "false", None)],
    *[(("input",), v) for v in ("image", [], {})],
    (("input", "dtype"), "float32"),
    (("input", "layout"), "NCHW"),
    (("output",), ""),
    *[(("max_pixels",), v) for v in (0, -5, 1 << 40, "many")],
    *[(("requires", "onnxruntime"), v) for v in ("latest", "1", 1.16, "1.16; rm")],
    *[(("requires", "opset"), v) for v in (0, "18", 1e3)],
    *[(("memory", "weights_bytes"), v) for v in (-1, 1.5, 1 << 50)],
    (("memory", "activation_bytes"), None),
    *[((key,), v) for key in ("calibration", "measured") for v in ([], None, "x")],
    *[(("files",), v) for v in ([], "x", {"model.onnx": "abc"})],
    *[(("target",), v) for v in ("rpi4", [], {"name": "rpi4"})],
    (("target",), {"name": "../x", "threads": 1, "memory_bytes": 1}),
    (("target",), {"name": "rpi4", "threads": 0, "memory_bytes": 1}),
    *[(("files", MODEL, "sha256"), v) for v in ("", "Z" * 64, "A" * 64, 5, "a" * 63)],
    *[(("files", MODEL, "bytes"), v) for v in (-1, "5", 1 << 50)],
]


@pytest.mark.parametrize(("keys", "value"), HOSTILE)
def test_hostile_values_are_refused_in_one_line(own, keys, value):
    data = json.loads((own / MANIFEST).read_text())
    inner = data
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (own / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(BundleError) as caught:
        open_bundle(own)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400 and text.isprintable()
    assert str(keys[0]) in text


def test_every_missing_field_is_named(own):
    whole = json.loads((own / MANIFEST).read_text())
    del whole[SEAL]  # checked last, and by decode_manifest alone

    def holes(data, place):
        for key, value in data.items():
            yield (*place, key)
            if isinstance(value, dict) and key not in ("measured", "calibration", "files"):
                yield from holes(value, (*place, key))

    for place in list(holes(whole, ())):
        data = copy.deepcopy(whole)
        inner = data
        for key in place[:-1]:
            inner = inner[key]
        del inner[place[-1]]
        with pytest.raises(BundleError, match=f"{'.'.join(place)} is missing"):
            Manifest.from_json(data)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"schema": NaN}',
        b'{"schema": 1, "schema": 1}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"schema": ' + b"9" * 10_000 + b"}",
    ],
)
def test_hostile_json(text):
    with pytest.raises(BundleError) as caught:
        decode_manifest(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_manifest_beyond_the_bound_is_not_read(own):
    with open(own / MANIFEST, "wb") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BundleError, match="at most"):
        open_bundle(own)


def test_unknown_keys_are_ignored(own):
    edit(own, lambda m: m.update(added_later={"x": 1}))
    assert open_bundle(own).manifest.name == "toy"


def test_nothing_half_written_remains(own, tmp_path, toy, monkeypatch):
    files = {name: (own / name).read_bytes() for name in (MODEL, SELFTEST)}
    folder = tmp_path / "out"
    folder.mkdir()
    manifest = toy.manifest_json(toy.labels)
    cases = [
        ({**manifest, "version": "x"}, files, BundleError),
        ({**manifest, "measured": {"top1": float("nan")}}, files, BundleError),
        (manifest, {MODEL: b""}, BundleError),
        (manifest, {**files, MANIFEST: b"{}"}, BundleError),
    ]
    for bad, content, error in cases:
        with pytest.raises(error):
            write_bundle(folder, bad, content)
        assert not list(folder.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full_disk)
        with pytest.raises(OSError, match="No space"):
            write_bundle(folder, manifest, files)
    assert not list(folder.iterdir())
    path = write_bundle(folder, manifest, files)
    assert [p.name for p in folder.iterdir()] == ["toy-v2"]
    before = (path / MANIFEST).read_bytes()
    with pytest.raises(InputError, match="there already"):
        write_bundle(folder, {**manifest, "method": "other"}, files)
    assert (path / MANIFEST).read_bytes() == before
    assert [p.name for p in folder.iterdir()] == ["toy-v2"]


def _full_disk(_):
    raise OSError(28, "No space left on device")


def rewrite_selftest(bundle, data):
    """Replace the self-test and its recorded hash, as an attacker would."""
    import hashlib

    (bundle / SELFTEST).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(bundle, lambda m: m["files"].update({SELFTEST: entry}))
    return open_bundle(bundle)


def test_selftest_round_trip_and_bad_ones(own):
    good = read_selftest(open_bundle(own))
    assert good.images.shape == (3, 8, 8, 3) and good.scores.shape == (3, 3)
    bad = [
        b"not a zip",
        encode_selftest(SelfTest(good.images, good.scores[:, :2], 0.1)),
        encode_selftest(SelfTest(good.images[:0], good.scores[:0], 0.1)),
        encode_selftest(SelfTest(good.images[..., :1], good.scores, 0.1)),
        encode_selftest(SelfTest(good.images, good.scores * np.nan, 0.1)),
        encode_selftest(SelfTest(good.images, good.scores, float("nan"))),
        encode_selftest(good)[:-30],
    ]
    for data in bad:
        with pytest.raises(RuntimeFault, match="selftest") as caught:
            read_selftest(rewrite_selftest(own, data))
        assert isinstance(caught.value, BundleError) and "\n" not in str(caught.value)


def test_selftest_that_claims_more_than_it_holds(own, tmp_path):
    import io

    good = encode_selftest(read_selftest(open_bundle(own)))
    with zipfile.ZipFile(io.BytesIO(good)) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    header = parts["images.npy"]
    lies = header.replace(b"(3, 8, 8, 3), }" + b" " * 12, b"(3, 8, 8, 3000000000000), }")
    assert len(lies) == len(header) and lies != header
    pickled = io.BytesIO()
    np.save(pickled, np.array([print], dtype=object), allow_pickle=True)
    for images in (lies, pickled.getvalue(), b"\x93NUMPY\x03\x00" + bytes(60)):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in {**parts, "images.npy": images}.items():
                archive.writestr(name, data)
        with pytest.raises(BundleError, match="not a self-test"):
            read_selftest(rewrite_selftest(own, buffer.getvalue()))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**parts, "images.npy": bytes(70_000_000)}.items():
            archive.writestr(name, data)
    with pytest.raises(BundleError, match="unpacks to 70000000 bytes"):
        read_selftest(rewrite_selftest(own, bomb.getvalue()))
