"""Hostile bundles, made from a good one: what an attacker or a broken disk could hand over.

Every builder changes a bundle in place as somebody would who knows the format: hashes and the
manifest's digest are made right again, unless the damage is in them. ``CASES`` names the words
that the refusal must contain.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import struct
import zipfile

import numpy as np
from runtime.protobuf_bytes import field, message, model, node

from edgecil_runtime.bundle import MANIFEST, MODEL, SELFTEST
from edgecil_runtime.manifest import sealed

CASES = {}


def case(expected):
    """Register a builder under its name, with the words that the refusal must contain."""

    def register(build):
        CASES[build.__name__] = (build, expected)
        return build

    return register


def edit(bundle, change):
    """Change the manifest and make its digest right again."""
    data = json.loads((bundle / MANIFEST).read_text())
    change(data)
    (bundle / MANIFEST).write_text(json.dumps(sealed(data)))


def put(bundle, name, data):
    """Replace a file and make its hash and the manifest's digest right again."""
    (bundle / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(bundle, lambda manifest: manifest["files"].update({name: entry}))


def set_label(bundle, name):
    edit(bundle, lambda manifest: manifest["labels"][0].update(name=name))


# Files that are not files


@case("symbolic link")
def model_is_a_link_to_an_equal_file(bundle):
    outside = bundle.parent / "outside.onnx"
    (bundle / MODEL).rename(outside)
    (bundle / MODEL).symlink_to(outside)


@case("symbolic link")
def manifest_is_a_link_to_itself(bundle):
    (bundle / MANIFEST).unlink()
    (bundle / MANIFEST).symlink_to(MANIFEST)


@case("symbolic link")
def selftest_is_a_link_to_an_endless_device(bundle):
    (bundle / SELFTEST).unlink()
    (bundle / SELFTEST).symlink_to("/dev/zero")


@case("not a plain file")
def model_is_a_folder(bundle):
    (bundle / MODEL).unlink()
    (bundle / MODEL).mkdir()


@case("not a plain file")
def manifest_is_a_fifo(bundle):
    (bundle / MANIFEST).unlink()
    os.mkfifo(bundle / MANIFEST)


@case("not a plain file")
def selftest_is_a_socket(bundle):
    (bundle / SELFTEST).unlink()
    with socket.socket(socket.AF_UNIX) as end:
        here = os.open(bundle, os.O_RDONLY)
        end.bind(f"/proc/self/fd/{here}/{SELFTEST}")  # the path itself may be too long for a socket
        os.close(here)


@case("without a folder")
def file_outside_the_folder(bundle):
    entry = {"sha256": "0" * 64, "bytes": 1}
    edit(bundle, lambda manifest: manifest["files"].update({"../../etc/shadow": entry}))


@case("more than 100 files")
def thousands_of_files(bundle):
    entry = {"sha256": "0" * 64, "bytes": 1}
    edit(bundle, lambda m: m["files"].update({f"f{i}": entry for i in range(2_000)}))


@case("whole number in")
def model_of_a_terabyte(bundle):
    os.truncate(bundle / MODEL, 1 << 40)
    edit(bundle, lambda manifest: manifest["files"][MODEL].update(bytes=1 << 40))


@case("at most")
def manifest_of_a_terabyte(bundle):
    os.truncate(bundle / MANIFEST, 1 << 40)


# Hostile JSON


@case("manifest_sha256 does not match")
def one_bit_of_a_label(bundle):
    data = (bundle / MANIFEST).read_bytes()
    (bundle / MANIFEST).write_bytes(data.replace(b'"red"', b'"rez"'))


@case("manifest_sha256 is missing")
def no_digest(bundle):
    data = (bundle / MANIFEST).read_bytes()
    (bundle / MANIFEST).write_bytes(data.replace(b"manifest_sha256", b"manifest_sha257"))


@case("key twice")
def two_models_in_the_list(bundle):
    text = (bundle / MANIFEST).read_text()
    (bundle / MANIFEST).write_text(text.replace(f'"{SELFTEST}"', f'"{MODEL}"'))


@case("values")
def millions_of_empty_lists(bundle):
    (bundle / MANIFEST).write_text("[" + "[]," * 2_000_000 + "[]]")


@case("deep")
def nested_beyond_the_stack(bundle):
    (bundle / MANIFEST).write_text("[" * 300_000)


@case("deep")
def nested_within_the_stack(bundle):
    deep = []
    for _ in range(500):
        deep = [deep]
    edit(bundle, lambda manifest: manifest.update(measured={"x": deep}))


@case("not a JSON number")
def not_a_number(bundle):
    edit(bundle, lambda manifest: manifest.update(measured={"top1": float("nan")}))


@case("not a finite number")
def number_that_overflows(bundle):
    text = (bundle / MANIFEST).read_text()
    (bundle / MANIFEST).write_text(text.replace('"measured": {', '"measured": {"x": 1e999', 1))


@case("digits")
def number_of_a_million_digits(bundle):
    text = (bundle / MANIFEST).read_text()
    (bundle / MANIFEST).write_text(text.replace('"version": 2', '"version": ' + "9" * 1_000_000))


@case("not valid JSON")
def manifest_is_not_utf8(bundle):
    (bundle / MANIFEST).write_bytes(b'{"name": "\xff\xfe"}')


@case("printable")
def label_that_clears_the_terminal(bundle):
    set_label(bundle, "\x1b[2J\x1b[1;1Hgreen")


@case("printable")
def label_written_backwards(bundle):
    set_label(bundle, "\u202eder")


@case("printable")
def label_with_half_a_character(bundle):
    set_label(bundle, "\ud83d")


@case("occurs twice")
def two_classes_of_one_name(bundle):
    set_label(bundle, "green")


# Hostile graphs


def tensor(*fields):
    return message((1, 1), (2, 1), (8, "w"), *fields)


def external(location):
    """Return the fields of a tensor whose numbers are in another file."""
    return (13, message((1, "location"), (2, location))), (14, 1)


def graph_case(name, expected, data):
    def build(bundle):
        put(bundle, MODEL, data)

    CASES[name] = (build, expected)


constant = node((5, message((1, "value"), (5, tensor(*external("weights.bin"))), (20, 4))))
loop = node((5, message((1, "body"), (6, message((1, node()))), (20, 5))), op="Loop")
for _name, _expected, _data in [
    ("weights_in_the_folder_above", "external data", model((5, tensor(*external("../secret"))))),
    ("weights_in_a_system_file", "external data", model((5, tensor(*external("/etc/passwd"))))),
    ("weights_in_an_unlisted_file", "external data", model((5, tensor(*external("w.bin"))))),
    ("location_without_the_flag", "external data", model((5, tensor(external("../x")[0])))),
    ("flag_without_a_location", "external data", model((5, tensor((14, 1))))),
    ("flag_beyond_the_enum", "external data", model((5, tensor((14, 1 << 40))))),
    ("weights_of_a_constant_outside", "external data", model(nodes=[constant])),
    ("weights_in_a_second_graph", "external data",
     model(more=[(7, message((5, tensor(*external("../x")))))])),
    ("sparse_weights", "sparse", model((15, message((1, tensor(*external("../x"))))))),
    ("sparse_weights_of_a_constant", "sparse", model(nodes=[node((5, message((22, b""))))])),
    ("endless_loop", "subgraph", model(nodes=[loop])),
    ("function_of_its_own", "functions", model(more=[(25, message((1, "f"), (7, constant)))])),
    ("training_information", "training", model(more=[(20, b"")])),
    ("operator_of_a_vendor", "not standard", model(nodes=[node((7, "com.microsoft"))])),
    ("opset_of_a_vendor", "not standard", model(more=[(8, message((1, "evil\x1b[31m"), (2, 1)))])),
    ("newer_than_it_says", "asks for IR 13", model(ir=13)),
    ("not_a_model", "expected an ONNX graph", b"GIF89a" + bytes(500)),
    ("empty_model", "expected an ONNX graph", b""),
    ("model_cut_off", "expected an ONNX graph", model()[:-7]),
    ("length_beyond_the_file", "are left", field(1, 8) + b"\x3a\xff\xff\xff\xff\x07"),
    ("length_that_never_ends", "without an end", field(1, 8) + b"\x3a" + b"\xff" * 30),
    ("deprecated_groups", "wire type 3", field(1, 8) + b"\x3b" * 100_000),
    ("millions_of_fields", "fields", field(1, 8) + b"\x10\x00" * 210_000),
]:  # fmt: skip
    graph_case(_name, _expected, _data)


# Hostile self-tests


def arrays(bundle):
    with zipfile.ZipFile(bundle / SELFTEST) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(entries, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(header, data=b""):
    """Return an array file whose header is any text."""
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def replace_images(bundle, data):
    put(bundle, SELFTEST, zipped({**arrays(bundle), "images.npy": data}.items()))


@case("not a self-test")
def selftest_is_no_archive(bundle):
    put(bundle, SELFTEST, b"PK\x05\x06" + bytes(10))


@case("unpacks to 90000000 bytes")
def zip_bomb(bundle):
    replace_images(bundle, bytes(90_000_000))


@case("not a self-test")
def zip_bomb_that_lies_about_its_size(bundle):
    data = zipped({**arrays(bundle), "images.npy": bytes(80_000_000)}.items())
    put(bundle, SELFTEST, data.replace(struct.pack("<I", 80_000_000), struct.pack("<I", 900)))


@case("too many entries")
def directory_of_ten_thousand(bundle):
    put(bundle, SELFTEST, zipped(((f"{i}", b"") for i in range(10_000)), zipfile.ZIP_STORED))


@case("expected images, scores, tolerance")
def array_twice(bundle):
    parts = arrays(bundle)
    data = zipped([*parts.items(), ("image2.npy", parts["images.npy"])])
    put(bundle, SELFTEST, data.replace(b"image2.npy", b"images.npy"))


@case("not a self-test")
def encrypted(bundle):
    data = bytearray(zipped(arrays(bundle).items()))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    put(bundle, SELFTEST, bytes(data))


@case("not a self-test")
def unknown_compression(bundle):
    data = bytearray(zipped(arrays(bundle).items()))
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.index(mark) + offset] = 97
    put(bundle, SELFTEST, bytes(data))


@case("not a self-test")
def pickled_array(bundle):
    buffer = io.BytesIO()
    np.save(buffer, np.array([os.getcwd], dtype=object), allow_pickle=True)
    replace_images(bundle, buffer.getvalue())


@case("claims shape")
def array_larger_than_its_data(bundle):
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (3, 8, 8, 900000000000)}"
    replace_images(bundle, npy(header, bytes(576)))


@case("claims shape")
def array_of_negative_size(bundle):
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (-3, -8, 8, 3)}"
    replace_images(bundle, npy(header, bytes(576)))


@case("expected uint8")
def images_of_floats(bundle):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 8, 8, 3)}"
    replace_images(bundle, npy(header, bytes(4 * 576)))


@case("not a self-test")
def header_of_brackets(bundle):
    text = b"(" * 9_000 + b"\n"
    replace_images(bundle, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)


@case("do not fit the model")
def selftest_of_another_model(bundle):
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 8, 8, 3)}"
    replace_images(bundle, npy(header, bytes(2 * 192)))
