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
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple, TypeVar

from edgecil_runtime.errors import BundleError

SCHEMA = 1
MAX_MANIFEST_BYTES = 16_000_000
MAX_LABELS = 100_000
MAX_FILE_BYTES = 1 << 40
MAX_SIDE = 16_384
SCORE_KINDS = ("logit", "probability", "cosine", "corrected-logit")
PRECISIONS = ("int8", "fp32")

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}\Z")
_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6}){1,3}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
# Control characters reach terminals, line separators break tables, surrogates break UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_T = TypeVar("_T")


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
class Manifest:
    """Everything that a bundle says about itself; see the field comments.

    ``name`` and ``version`` make the folder name ``<name>-v<version>``; ``parent`` is the
    version this one was learned from. ``labels`` are in the order of the scores. With
    ``fixed_input`` the graph takes uint8 ``(1, size, size, 3)`` and the caller resizes;
    otherwise uint8 ``(1, H, W, 3)`` of any size. ``calibration`` and ``measured`` are free
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
        top = _Fields(_object(data, "manifest"), "")
        schema = top.get("schema", _integer(1, 1 << 31))
        if schema > SCHEMA:
            raise BundleError(
                f"the bundle has schema {schema}, this runtime reads up to {SCHEMA}",
                hint="pip install --upgrade edgecil-runtime",
            )
        need = top.inner("memory")
        ports = top.inner("input")
        ports.get("dtype", _one_of(("uint8",)))
        ports.get("layout", _one_of(("NHWC",)))
        requires = top.inner("requires")
        return cls(
            name=top.get("name", _file_name),
            version=top.get("version", _integer(0, 1 << 31)),
            parent=top.get("parent", _optional(_integer(0, 1 << 31))),
            created=top.get("created", _text(64)),
            edgecil_version=top.get("edgecil_version", _text(64)),
            method=top.get("method", _text(200)),
            labels=top.get("labels", _labels),
            preprocess=_preprocess(top.inner("preprocess")),
            score_kind=top.get("score_kind", _one_of(SCORE_KINDS)),
            precision=top.get("precision", _one_of(PRECISIONS)),
            fixed_input=top.get("fixed_input", _boolean),
            input_name=ports.get("name", _text(200)),
            output_name=top.get("output", _text(200)),
            max_pixels=top.get("max_pixels", _integer(1, 1 << 31)),
            requires=Requirements(
                requires.get("onnxruntime", _matching(_VERSION, "a version such as 1.16")),
                requires.get("opset", _integer(1, 1000)),
                requires.get("ir", _integer(1, 1000)),
            ),
            memory=MemoryNeed(
                need.get("weights_bytes", _integer(0, MAX_FILE_BYTES)),
                need.get("activation_bytes", _integer(0, MAX_FILE_BYTES)),
            ),
            calibration=top.get("calibration", _object),
            measured=top.get("measured", _object),
            files=top.get("files", _files),
            schema=schema,
        )

    def to_json(self) -> Dict[str, Any]:
        """Return the JSON object from which :meth:`from_json` makes an equal manifest."""
        data = asdict(self)
        data["labels"] = [label._asdict() for label in self.labels]
        data["files"] = {name: entry._asdict() for name, entry in self.files.items()}
        data["input"] = {"name": data.pop("input_name"), "dtype": "uint8", "layout": "NHWC"}
        data["output"] = data.pop("output_name")
        return data


def decode_manifest(text: bytes) -> Manifest:
    """Return the manifest in the bytes of a ``manifest.json``.

    Raises:
        BundleError: not JSON, a key twice, or a field that is wrong.
    """
    try:
        data = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # includes JSON and UTF-8 errors
        raise BundleError(f"manifest.json is not valid JSON: {_one_line(error)}") from None
    return Manifest.from_json(data)


def check_file_name(name: str) -> str:
    """Return ``name`` when it is a plain file name: no folder, no leading dot, ASCII.

    Raises:
        BundleError: it is not.
    """
    return _file_name(name, "file name")


class _Fields:
    """A JSON object whose fields are taken out through checks that know their place."""

    def __init__(self, data: Mapping[str, Any], place: str) -> None:
        self.data = data
        self.place = place

    def get(self, key: str, check: Callable[[Any, str], _T]) -> _T:
        if key not in self.data:
            raise BundleError(f"manifest.json: {self.place}{key} is missing")
        return check(self.data[key], f"{self.place}{key}")

    def inner(self, key: str) -> _Fields:
        return _Fields(self.get(key, _object), f"{self.place}{key}.")


def _wrong(place: str, expected: str, got: Any) -> BundleError:
    text = repr(got) if isinstance(got, (str, int, float, type(None))) else type(got).__name__
    short = text if len(text) <= 60 else text[:57] + "..."
    return BundleError(f"manifest.json: {place}: expected {expected}, got {short}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object names a key twice")
    return result


def _object(value: Any, place: str) -> Dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(place, "an object", value)
    return value


def _boolean(value: Any, place: str) -> bool:
    if type(value) is not bool:
        raise _wrong(place, "true or false", value)
    return value


def _integer(low: int, high: int) -> Callable[[Any, str], int]:
    def check(value: Any, place: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _wrong(place, f"a whole number in [{low}, {high}]", value)
        return value

    return check


def _optional(check: Callable[[Any, str], _T]) -> Callable[[Any, str], Optional[_T]]:
    return lambda value, place: None if value is None else check(value, place)


def _text(longest: int) -> Callable[[Any, str], str]:
    def check(value: Any, place: str) -> str:
        good = isinstance(value, str) and 1 <= len(value) <= longest
        if not good or _UNPRINTABLE.search(value):
            raise _wrong(place, f"1 to {longest} printable characters", value)
        return str(value)

    return check


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[Any, str], str]:
    def check(value: Any, place: str) -> str:
        if not isinstance(value, str) or not pattern.match(value):
            raise _wrong(place, what, value)
        return value

    return check


_file_name = _matching(_FILE_NAME, "letters, digits, '-', '_' and '.' without a folder")


def _one_of(allowed: Tuple[str, ...]) -> Callable[[Any, str], str]:
    def check(value: Any, place: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise _wrong(place, "one of " + ", ".join(allowed), value)
        return value

    return check


def _items(value: Any, place: str, most: int) -> List[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise _wrong(place, f"a list of 1 to {most} items", value)
    return value


def _labels(value: Any, place: str) -> Tuple[Label, ...]:
    name, increment = _text(1000), _integer(1, 1 << 31)
    labels = []
    for index, item in enumerate(_items(value, place, MAX_LABELS)):
        fields = _Fields(_object(item, f"{place}[{index}]"), f"{place}[{index}].")
        labels.append(Label(fields.get("name", name), fields.get("increment", increment)))
    if len({label.name for label in labels}) != len(labels):
        raise BundleError(f"manifest.json: {place}: a class name occurs twice")
    return tuple(labels)


def _triple(positive: bool) -> Callable[[Any, str], Tuple[float, float, float]]:
    def check(value: Any, place: str) -> Tuple[float, float, float]:
        kind = "three positive numbers" if positive else "three numbers"
        if not isinstance(value, list) or len(value) != 3:
            raise _wrong(place, kind, value)
        for number in value:
            bad = type(number) not in (int, float) or not -1e6 < number < 1e6
            if bad or not math.isfinite(number) or (positive and number <= 0):
                raise _wrong(place, kind, number)
        return (float(value[0]), float(value[1]), float(value[2]))

    return check


def _preprocess(fields: _Fields) -> Preprocessing:
    resize = fields.get("resize", _integer(1, MAX_SIDE))
    return Preprocessing(
        fields.get("size", _integer(1, resize)),
        resize,
        fields.get("mean", _triple(False)),
        fields.get("std", _triple(True)),
    )


def _files(value: Any, place: str) -> Dict[str, FileEntry]:
    entries = {}
    for name, item in _object(value, place).items():
        _file_name(name, place)
        fields = _Fields(_object(item, f"{place}.{name}"), f"{place}.{name}.")
        entries[name] = FileEntry(
            fields.get("sha256", _matching(_SHA256, "64 lower-case hex digits")),
            fields.get("bytes", _integer(0, MAX_FILE_BYTES)),
        )
    return entries
