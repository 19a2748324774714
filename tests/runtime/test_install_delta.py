"""Deltas on the device: to the byte, in little memory, and never from a damaged or foreign file."""

import json
import os
import random
import shutil
import subprocess
import sys
import zlib
from importlib import util
from pathlib import Path

import numpy as np
import pytest

from edgecil.exporting.delta import make_delta
from edgecil_runtime import delta as format_
from edgecil_runtime.bundle import MANIFEST, open_bundle
from edgecil_runtime.delta import PREFIX_BYTES, apply_delta, encode_header, read_delta
from edgecil_runtime.errors import BundleError, RuntimeFault, UpdateError
from edgecil_runtime.hashing import sha256
from edgecil_runtime.install import install
from edgecil_runtime.slots import Slots

onnx = pytest.importorskip("onnx")
DEVICES = Path(__file__).parents[2] / "devices"


def learned(model, seed=0):
    """Return a serialised int8 model whose weights moved a little, as learning moves them."""
    draw, proto = np.random.default_rng(seed), onnx.load_from_string(model)
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.int8 and values.ndim > 1:
            moved = np.clip(values + draw.normal(0, 1.5, values.shape).round(), -127, 127)
        elif values.dtype == np.float32 and values.ndim == 1:
            moved = values * (1 + draw.normal(0, 0.01))
        else:
            continue
        tensor.CopyFrom(onnx.numpy_helper.from_array(moved.astype(values.dtype), tensor.name))
    return proto.SerializeToString()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """An int8 ResNet-32 of 10 classes, the next version of 20, and the delta between them."""
    spec = util.spec_from_file_location("toy_bundles", Path(__file__).with_name("conftest.py"))
    toys = util.module_from_spec(spec)
    spec.loader.exec_module(toys)
    folder = tmp_path_factory.mktemp("pair")
    made = []
    for version, classes in ((1, 10), (2, 20)):
        data, *sizes = toys.residual_model((16, 32, 64), 5, 32, 32, classes, int8=True)
        labels = [f"class {i}" for i in range(classes)]
        built = (learned(data) if version == 2 else data, *sizes)
        path = toys.make_bundle(
            folder, built, labels, 32, 32, precision="int8", version=version, parent=version - 1
        )
        made.append(open_bundle(path))
    return (*made, make_delta(*made, folder))


@pytest.fixture(scope="module")
def device(pair, tmp_path_factory):
    """A device with version 1; not to be changed."""
    root = tmp_path_factory.mktemp("device") / "device"
    install(pair[0].path, root)
    return root


@pytest.fixture
def root(device, tmp_path):
    return shutil.copytree(device, tmp_path / "device")


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def resealed(body, header_bytes):
    """Return a delta of header and streams whose hash is right."""
    length = header_bytes.to_bytes(4, "little")
    return format_.MAGIC + length + sha256(body).digest() + body


def with_header(path, change):
    """Return the delta at ``path`` with another JSON header, and a hash that fits it."""
    data = path.read_bytes()
    length = int.from_bytes(data[8:12], "little")
    start = PREFIX_BYTES + length
    header = json.loads(zlib.decompress(data[PREFIX_BYTES:start]))
    change(header)
    packed = zlib.compress(json.dumps(header).encode())
    return resealed(packed + data[start:], len(packed))


def test_a_delta_gives_the_bundle_to_the_byte(pair, root):
    _, new, report = pair
    assert report.differences and report.bytes < 0.6 * report.full_bytes
    result = install(report.path, root)
    assert result.replaced.version == 1
    assert files_of(result.path) == files_of(new.path)
    assert not install(report.path, root).changed
    assert Slots(root).rollback().revision.version == 1
    assert install(report.path, root).changed, "from the version that is back"


def test_a_delta_needs_its_base(pair, root, toy, tmp_path):
    _, _, report = pair
    with pytest.raises(UpdateError, match="nothing is installed"):
        install(report.path, tmp_path / "empty")
    other = toy.colour_bundle(tmp_path, version=1)
    install(other, tmp_path / "other")
    with pytest.raises(UpdateError, match="installed is another toy-v1"):
        install(report.path, tmp_path / "other")
    with pytest.raises(BundleError, match="made for another toy-v1"):
        apply_delta(read_delta(report.path), other, tmp_path)
    (root / "a" / "toy-v1" / "model.onnx").unlink()
    with pytest.raises(BundleError) as error:
        install(report.path, root)
    assert "install" in error.value.hint


def check_refused(root, path, words="."):
    """One line, and neither the current version nor the way back is touched."""
    before = (root / "state.json").read_bytes()
    with pytest.raises(RuntimeFault, match=words) as error:
        install(path, root)
    assert "\n" not in error.value.message
    assert (root / "state.json").read_bytes() == before
    assert [p.name for p in root.iterdir() if p.is_dir()] == ["a"]


def test_damaged_and_truncated_files_are_refused(pair, root, tmp_path):
    data = pair[2].path.read_bytes()
    draw, damaged = random.Random(0), tmp_path / "x.delta"
    positions = [0, 9, 13, 45, len(data) - 1, *draw.sample(range(len(data)), 30)]
    for position in positions:
        broken = bytearray(data)
        broken[position] ^= 1 << draw.randrange(8)
        damaged.write_bytes(broken)
        check_refused(root, damaged)
    for length in (0, 7, 8, 43, 44, 100, len(data) // 2, len(data) - 1):
        damaged.write_bytes(data[:length])
        check_refused(root, damaged)
    damaged.write_bytes(data + b"x")
    check_refused(root, damaged, "SHA-256 does not match")


def set_steps(name, flat):
    return lambda header: header["files"].update({name: flat})


HOSTILE_HEADERS = {
    "newer": lambda h: h.update(schema=2),
    "no schema": lambda h: h.pop("schema"),
    "traversal": set_steps("../evil", [0, 0, 5]),
    "no manifest": lambda h: h["files"].pop(MANIFEST),
    "name": lambda h: h["to"].update(name="../../etc"),
    "hash": lambda h: h["to"].update(manifest_sha256="00"),
    "kind": set_steps("model.onnx", [9, 0, 5]),
    "half a word": set_steps("model.onnx", [3, 0, 5]),
    "no triples": set_steps("model.onnx", [1, 0]),
    "negative": set_steps("model.onnx", [1, -5, 5]),
    "fraction": set_steps("model.onnx", [1, 0.5, 5]),
    "true": set_steps("model.onnx", [1, 0, True]),
    "codec": lambda h: h["streams"][0].__setitem__(0, "rar"),
    "streams": lambda h: h["streams"].pop(),
    "size": lambda h: h["streams"][0].__setitem__(1, 1),
    "list": lambda h: h.update(files=[1, 2]),
}


@pytest.mark.parametrize("change", HOSTILE_HEADERS.values(), ids=HOSTILE_HEADERS)
def test_hostile_headers_are_refused(pair, root, tmp_path, change):
    path = tmp_path / "x.delta"
    path.write_bytes(with_header(pair[2].path, change))
    check_refused(root, path)


def test_headers_that_are_too_large_are_refused(pair, root, tmp_path):
    path = tmp_path / "x.delta"
    for body, length in (
        (b"", 600_000),
        (zlib.compress(b" " * 10_000_000), None),
        (b"no deflate stream", None),
        (zlib.compress(b"{}")[:-3], None),
    ):
        path.write_bytes(resealed(body, len(body) if length is None else length))
        check_refused(root, path, "header")


# What only shows while the slot is written: the current version stays, the slot is emptied.
HOSTILE_STEPS = {
    "beyond the base": (set_steps("model.onnx", [1, 10**9, 5]), "beyond the end"),
    "no such base": (set_steps("more.bin", [1, 0, 5]), "beyond the end"),
    "stream too short": (set_steps("model.onnx", [2, 0, 10**9]), "beyond the end|stream"),
    "literal too short": (set_steps("more.bin", [0, 0, 10**6]), "stream"),
    "another result": (set_steps("model.onnx", [1, 0, 50]), "expected"),
    "another manifest": (set_steps(MANIFEST, [1, 0, 50]), "does not give the manifest"),
    "another codec": (lambda h: [s.__setitem__(0, "zlib") for s in h["streams"]], "damaged"),
    "stored": (lambda h: [s.__setitem__(0, "stored") for s in h["streams"]], "."),
}


@pytest.mark.parametrize("change, words", HOSTILE_STEPS.values(), ids=HOSTILE_STEPS)
def test_deltas_that_do_not_give_what_they_promise(pair, root, tmp_path, change, words):
    path = tmp_path / "x.delta"
    path.write_bytes(with_header(pair[2].path, change))
    with pytest.raises(BundleError, match=words) as error:
        install(path, root)
    assert "\n" not in error.value.message
    state = Slots(root).state()
    assert state.revision.version == 1 and state.history[-1]["event"] == "failed"
    assert not (root / "b").exists()


def test_a_python_without_lzma_says_so(pair, root, monkeypatch):
    monkeypatch.setitem(sys.modules, "lzma", None)
    with pytest.raises(BundleError, match="no module lzma"):
        install(pair[2].path, root)


def forged(tmp_path, old, target, files, streams, packed):
    """Write a delta from the bundle ``old`` by hand."""
    source = format_.Revision.of(old.path, old.manifest)
    header = encode_header(format_.Delta(Path(), source, target, files, streams, 0))
    path = tmp_path / "forged.delta"
    path.write_bytes(resealed(header + packed, len(header)))
    return path


@pytest.mark.parametrize("codec", ["zlib", "xz"])
def test_memory_is_bounded_whatever_the_delta_says(pair, tmp_path, codec):
    # 64 MB of zeros in a few hundred bytes, and an old file that is added to: applied by a
    # process that may allocate 24 MB more than it has.
    import lzma

    old, size = pair[0], 64_000_000
    zeros = zlib.compressobj(9) if codec == "zlib" else lzma.LZMACompressor(preset=1)
    packed = b"".join(zeros.compress(bytes(10**6)) for _ in range(size // 10**6)) + zeros.flush()
    target = format_.Revision("toy", 2, "0" * 64)
    base = old.path / "model.onnx"
    steps = [format_.Step(format_.ADD_BYTES, 0, base.stat().st_size)] * 2
    steps.append(format_.Step(format_.LITERAL, 0, size))
    empty = format_.Stream("stored", 0)
    streams = dict.fromkeys(format_.STREAMS, empty)
    streams[format_.LITERAL] = format_.Stream(codec, len(packed))
    streams[format_.ADD_BYTES] = format_.Stream(codec, len(packed))
    files = {"model.onnx": tuple(steps), MANIFEST: (format_.Step(format_.COPY, 0, 10),)}
    path = forged(tmp_path, old, target, files, streams, packed * 2)
    code = (
        "import lzma, resource, sys; from edgecil_runtime import delta, memory\n"
        "from edgecil_runtime.errors import BundleError\n"
        "soft = memory.usage().data + 24_000_000\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (soft, soft))\n"
        "try: delta.apply_delta(delta.read_delta(sys.argv[1]), sys.argv[2], sys.argv[3])\n"
        "except BundleError as error: print(error)"
    )
    out = tmp_path / "out"
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, path, old.path, out],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(DEVICES)},
    )  # fmt: skip
    assert "does not give the manifest" in done.stdout, done.stderr
    assert (out / "model.onnx").stat().st_size == size + 2 * base.stat().st_size


def test_a_dictionary_too_large_for_a_device_is_refused(pair, tmp_path):
    import lzma

    filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 1 << 26}]
    packed = lzma.compress(bytes(100), filters=filters)
    streams = dict.fromkeys(format_.STREAMS, format_.Stream("stored", 0))
    streams[format_.LITERAL] = format_.Stream("xz", len(packed))
    files = {MANIFEST: (format_.Step(format_.LITERAL, 0, 100),)}
    target = format_.Revision("toy", 2, "0" * 64)
    path = forged(tmp_path, pair[0], target, files, streams, packed)
    with pytest.raises(BundleError, match="damaged"):
        apply_delta(read_delta(path), pair[0].path, tmp_path)
