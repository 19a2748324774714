"""The manifest of a bundle: what a device must know about a model, checked field by field.

``manifest.json`` is untrusted input: every type and bound is checked before use. Keys that this
reader does not know are ignored, so that a later writer may add information; a change that
would make an old reader wrong raises ``schema`` instead, and is refused here.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Tuple

from edgecil_runtime.errors import BundleError
from edgecil_runtime.hashing import sha256
from edgecil_runtime.json_fields import (
    Fields,
    boolean,
    integer,
    json_object,
    list_items,
    matching,
    one_of,
    optional,
    printable_text,
    wrong_value,
)
from edgecil_runtime.strict_json import decode_json

SCHEMA = 1
MAX_MANIFEST_BYTES = 16_000_000
MAX_LABELS = 100_000
MAX_FILES = 100
MAX_FILE_BYTES = 1 << 31  # the bound of protobuf, and so of an ONNX file
MAX_MEMORY_BYTES = 1 << 40
MAX_SIDE = 16_384
SEAL = "manifest_sha256"
SCORE_KINDS = ("logit", "probability", "cosine", "corrected-logit")
PRECISIONS = ("int8", "fp32")

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}\Z")
_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6}){1,3}\Z")
_sha256_hex = matching(re.compile(r"[0-9a-f]{64}\Z"), "64 lower-case hex digits")


class Label(NamedTuple):
    """A class: its name, and the increment that introduced it (1 is the base)."""

    name: str
    increment: int


class FileEntry(NamedTuple):
    """What a file of the bundle must be: SHA-256 as 64 hex digits, and size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Preprocessing:
    """From an image to the network's input, as recorded; the graph does it by itself.

    The shorter side is resized to ``resize`` pixels, the centre ``size`` x ``size`` is taken.
    """

    size: int
    resize: int
    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]


@dataclass(frozen=True)
class Requirements:
    """The oldest onnxruntime that loads the model, and its opset and IR version."""

    onnxruntime: str
    opset: int
    ir: int


@dataclass(frozen=True)
class MemoryNeed:
    """What the model itself needs, in bytes, from which a device predicts its peak.

    ``weights_bytes`` is the sum of all initialisers as stored. ``activation_bytes`` is the
    largest sum of intermediate tensors alive at once while one ``size`` x ``size`` image goes
    through the graph in stored node order, in the precision in which they are computed (one
    byte per value between the quantised nodes of an int8 graph).
    """

    weights_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class Target:
    """The device that a bundle was exported for: profile, threads, and its memory in bytes.

    ``memory_bytes`` is the peak of the whole process that the profile allows.
    """

    name: str
    threads: int
    memory_bytes: int


@dataclass(frozen=True)
class Manifest:
    """Everything that a bundle says about itself; see the field comments.

    ``name`` and ``version`` make the folder name ``<name>-v<version>``; ``parent`` is the
    version this one was learned from. ``labels`` are in the order of the scores. With
    ``fixed_input`` the graph takes uint8 ``(1, size, size, 3)`` and the caller resizes;
    otherwise uint8 ``(1, H, W, 3)`` of any size. ``target`` is None when the bundle was not
    exported for a certain device. ``calibration`` and ``measured`` are free
    JSON objects for people to read.
    """

    name: str
    version: int
    parent: Optional[int]
    created: str
    edgecil_version: str
    method: str
    labels: Tuple[Label, ...]
    preprocess: Preprocessing
    score_kind: str
    precision: str
    fixed_input: bool
    input_name: str
    output_name: str
    max_pixels: int
    requires: Requirements
    memory: MemoryNeed
    calibration: Mapping[str, Any]
    measured: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    target: Optional[Target] = None
    schema: int = SCHEMA

    @property
    def directory_name(self) -> str:
        """The name of the bundle's folder."""
        return f"{self.name}-v{self.version}"

    @classmethod
    def from_json(cls, data: Any) -> Manifest:
        """Return the manifest that a decoded JSON value describes.

        Raises:
            BundleError: a field is missing, of another type or out of bounds; it is named.
        """
        top = Fields(json_object(data, "manifest.json"), "manifest.json: ")
        schema = top.get("schema", integer(1, 1 << 31))
        if schema > SCHEMA:
            raise BundleError(
                f"the bundle has schema {schema}, this runtime reads up to {SCHEMA}",
                hint="pip install --upgrade edgecil-runtime",
            )
        need = top.inner("memory")
        ports = top.inner("input")
        ports.get("dtype", one_of(("uint8",)))
        ports.get("layout", one_of(("NHWC",)))
        requires = top.inner("requires")
        return cls(
            name=top.get("name", _file_name),
            version=top.get("version", integer(0, 1 << 31)),
            parent=top.get("parent", optional(integer(0, 1 << 31))),
            created=top.get("created", printable_text(64)),
            edgecil_version=top.get("edgecil_version", printable_text(64)),
            method=top.get("method", printable_text(200)),
            labels=top.get("labels", _labels),
            preprocess=_preprocess(top.inner("preprocess")),
            score_kind=top.get("score_kind", one_of(SCORE_KINDS)),
            precision=top.get("precision", one_of(PRECISIONS)),
            fixed_input=top.get("fixed_input", boolean),
            input_name=ports.get("name", printable_text(200)),
            output_name=top.get("output", printable_text(200)),
            max_pixels=top.get("max_pixels", integer(1, 1 << 31)),
            requires=Requirements(
                requires.get("onnxruntime", matching(_VERSION, "a version such as 1.16")),
                requires.get("opset", integer(1, 1000)),
                requires.get("ir", integer(1, 1000)),
            ),
            memory=MemoryNeed(
                need.get("weights_bytes", integer(0, MAX_MEMORY_BYTES)),
                need.get("activation_bytes", integer(0, MAX_MEMORY_BYTES)),
            ),
            calibration=top.get("calibration", json_object),
            measured=top.get("measured", json_object),
            files=top.get("files", _files),
            target=_target(top) if top.data.get("target") is not None else None,
            schema=schema,
        )

    def to_json(self) -> Dict[str, Any]:
        """Return the JSON object from which :meth:`from_json` makes an equal manifest."""
        data = asdict(self)
        data["labels"] = [label._asdict() for label in self.labels]
        data["files"] = {name: entry._asdict() for name, entry in self.files.items()}
        data["input"] = {"name": data.pop("input_name"), "dtype": "uint8", "layout": "NHWC"}
        data["output"] = data.pop("output_name")
        if self.target is None:
            del data["target"]
        return data


def decode_manifest(text: bytes) -> Manifest:
    """Return the manifest in the bytes of a ``manifest.json``.

    Raises:
        BundleError: not JSON, a key twice, a field that is wrong, or not as it was written.
    """
    try:
        data = decode_json(text)
    except ValueError as error:
        raise BundleError(f"manifest.json is not valid JSON: {error}") from None
    manifest = Manifest.from_json(data)
    seal = Fields(data, "manifest.json: ").get(SEAL, _sha256_hex)
    if seal != manifest_digest(data):
        raise BundleError(
            f"manifest.json: {SEAL} does not match the rest of the file",
            hint="the file was damaged or changed; copy the bundle again",
        )
    return manifest


def manifest_digest(data: Mapping[str, Any]) -> str:
    """Return the SHA-256, as 64 hex digits, of what a manifest's JSON object says.

    It covers every key but :data:`SEAL`, in an order and spelling of its own, and through the
    hashes in ``files`` all of the bundle. A flipped bit in a label would be valid JSON.
    """
    content = {key: value for key, value in data.items() if key != SEAL}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return str(sha256(text.encode()).hexdigest())


def sealed(data: Mapping[str, Any]) -> Dict[str, Any]:
    """Return a manifest's JSON object with its digest in :data:`SEAL`."""
    return {**data, SEAL: manifest_digest(data)}


def check_file_name(name: str) -> str:
    """Return ``name`` when it is a plain file name: no folder, no leading dot, ASCII.

    Raises:
        BundleError: it is not.
    """
    return _file_name(name, "file name")


_file_name = matching(_FILE_NAME, "letters, digits, '-', '_' and '.' without a folder")


def _labels(value: Any, place: str) -> Tuple[Label, ...]:
    name, increment = printable_text(1000), integer(1, 1 << 31)
    labels = []
    for index, item in enumerate(list_items(value, place, MAX_LABELS)):
        fields = Fields(json_object(item, f"{place}[{index}]"), f"{place}[{index}].")
        labels.append(Label(fields.get("name", name), fields.get("increment", increment)))
    if len({label.name for label in labels}) != len(labels):
        raise BundleError(f"{place}: a class name occurs twice")
    return tuple(labels)


def _triple(positive: bool) -> Callable[[Any, str], Tuple[float, float, float]]:
    def check(value: Any, place: str) -> Tuple[float, float, float]:
        kind = "three positive numbers" if positive else "three numbers"
        if not isinstance(value, list) or len(value) != 3:
            raise wrong_value(place, kind, value)
        for number in value:
            bad = type(number) not in (int, float) or not -1e6 < number < 1e6
            if bad or not math.isfinite(number) or (positive and number <= 0):
                raise wrong_value(place, kind, number)
        return (float(value[0]), float(value[1]), float(value[2]))

    return check


def _preprocess(fields: Fields) -> Preprocessing:
    resize = fields.get("resize", integer(1, MAX_SIDE))
    return Preprocessing(
        fields.get("size", integer(1, resize)),
        resize,
        fields.get("mean", _triple(False)),
        fields.get("std", _triple(True)),
    )


def _target(fields: Fields) -> Target:
    inner = fields.inner("target")
    return Target(
        inner.get("name", _file_name),
        inner.get("threads", integer(1, 1024)),
        inner.get("memory_bytes", integer(1, MAX_MEMORY_BYTES)),
    )


def _files(value: Any, place: str) -> Dict[str, FileEntry]:
    entries = {}
    if len(json_object(value, place)) > MAX_FILES:
        raise BundleError(f"{place}: more than {MAX_FILES} files")
    for name, item in value.items():
        _file_name(name, place)
        fields = Fields(json_object(item, f"{place}.{name}"), f"{place}.{name}.")
        entries[name] = FileEntry(
            fields.get("sha256", _sha256_hex),
            fields.get("bytes", integer(0, MAX_FILE_BYTES)),
        )
    return entries
