"""Containers of arrays are untrusted files, too: each way to lie in the header is refused."""

import json
import sys

import numpy as np
import pytest

from edgecil_runtime import container, hashing
from edgecil_runtime.container import MAX_HEADER_BYTES, ContainerError

ENTRY = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


def packed(header, data=b"ab"):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "finite"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b"[" * 5000, "deep"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"\xff", "utf-8"),
        ({"__metadata__": {"x": 1}}, "text to text"),
        ({"__metadata__": []}, "text to text"),
        ({"a": []}, "must have dtype"),
        ({"a": {**ENTRY, "more": 1}}, "must have dtype"),
        ({"a": {**ENTRY, "dtype": "F8"}}, "unknown dtype"),
        ({"a": {**ENTRY, "dtype": 8}}, "unknown dtype"),
        ({"a": {**ENTRY, "shape": [-2]}}, "lists of integers"),
        ({"a": {**ENTRY, "shape": [True]}}, "lists of integers"),
        ({"a": {**ENTRY, "shape": 2}}, "lists of integers"),
        ({"a": {**ENTRY, "data_offsets": [0]}}, "do not match"),
        ({"a": {**ENTRY, "shape": [1 << 60, 1 << 60]}}, "do not match"),
        ({"a": {**ENTRY, "shape": [9], "data_offsets": [0, 9]}}, "ends at byte 9 of 2"),
        ({"a": {**ENTRY, "shape": [1], "data_offsets": [1, 2]}}, "starts at 1, not 0"),
        ({"a": ENTRY, "b": ENTRY}, "starts at 0, not 2"),
        ({"a": {**ENTRY, "shape": [1], "data_offsets": [0, 1]}}, "fill 1 of 2 bytes"),
    ],
)
def test_headers_that_lie(tmp_path, header, reason):
    data = packed(header)
    with pytest.raises(ContainerError, match=reason) as caught:
        container.decode(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    (tmp_path / "x").write_bytes(data)
    for mmap in (False, True):
        with pytest.raises(ContainerError, match=f"x: .*{reason}"):
            container.read(tmp_path / "x", mmap=mmap)


@pytest.mark.parametrize(
    "data", [b"", b"short", (1 << 62).to_bytes(8, "little"), (9).to_bytes(8, "little") + b"{}"]
)
def test_files_too_short_for_their_header(data):
    with pytest.raises(ContainerError, match=r"too short|the file has"):
        container.decode(data)


def test_a_header_beyond_the_bound_is_not_decoded():
    text = b'{"a":' + b" " * MAX_HEADER_BYTES + b"1}"
    with pytest.raises(ContainerError, match="the header claims"):
        container.decode(packed(text))


def test_an_array_without_a_name_in_the_format():
    with pytest.raises(ContainerError, match="complex"):
        container.encode({"a": np.zeros(1, np.complex64)})


def test_what_is_written_comes_back(tmp_path):
    arrays = {"a": np.arange(6, dtype=">i4").reshape(2, 3), "b": np.ones(3, np.uint8)}
    size = container.write(tmp_path / "x", arrays, {"k": "v"})
    assert size == (tmp_path / "x").stat().st_size
    planned = container.layout({"a": ("I32", (2, 3)), "b": ("U8", (3,))}, {"k": "v"})
    assert planned.total_bytes == size
    for mmap in (False, True):
        found, metadata = container.read(tmp_path / "x", mmap=mmap)
        assert metadata == {"k": "v"}
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)


def test_bfloat16_is_read_as_float32_and_not_written(tmp_path):
    values = np.array([[1.0, -2.5], [3.0e38, 0.0078125]], np.float32)
    raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    data = packed({"a": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}, raw)
    (tmp_path / "x").write_bytes(data)
    for mmap in (False, True):
        found = container.read(tmp_path / "x", mmap=mmap)[0]["a"]
        assert found.dtype == np.float32 and found.shape == (2, 2)
        np.testing.assert_allclose(found, values, rtol=2**-8)
        assert found[0].tolist() == [1.0, -2.5]
    short = packed({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 2]}})
    with pytest.raises(ContainerError, match="do not match"):
        container.decode(short)
    with pytest.raises(KeyError):
        container.layout({"a": ("BF16", (1,))})


def test_sha256_with_and_without_openssl(monkeypatch):
    wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hashing.sha256(b"abc").hexdigest() == wanted
    for name in ("_sha2", "_sha256"):
        monkeypatch.setitem(sys.modules, name, None)
    assert hashing.sha256(b"abc").hexdigest() == wanted


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    container.write_atomic(tmp_path / "x", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        container.write_atomic(tmp_path / "x", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"
