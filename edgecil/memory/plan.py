"""How many bytes a method will keep, before there is anything to keep.

Planned and measured bytes are both the sizes of one container file, counted by the same
function, so that for fixed-size codecs plan, file and report are equal to the byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgecil.memory import codecs
from edgecil.memory.codec import Growing, Specs
from edgecil.memory.fields import Dimensions, Field
from edgecil.memory.trees import tree_index, tree_size
from edgecil_runtime import container
from edgecil_runtime.container import Spec

HEADER = "header"
TREE = "tree"


@dataclass(frozen=True)
class Row:
    """Bytes of one field, all its increments and parts together."""

    name: str
    bytes: int
    exact: bool = True
    """False for an upper bound."""


@dataclass(frozen=True)
class MemoryPlan:
    """Where the bytes of a memory file are: planned, or measured on a file.

    ``rows`` and ``header_bytes`` are the kept memory: the file that the kept fields alone
    would make. ``classifier`` fields and what they add to the header are counted apart.
    """

    rows: tuple[Row, ...] = ()
    header_bytes: int = 0
    classifier: tuple[Row, ...] = ()
    classifier_header_bytes: int = 0

    @property
    def kept_bytes(self) -> int:
        """Bytes carried to the next increment beyond the classifier, header included."""
        return sum(row.bytes for row in self.rows) + self.header_bytes

    @property
    def classifier_bytes(self) -> int:
        """Bytes of the file that are part of the classifier itself."""
        return sum(row.bytes for row in self.classifier) + self.classifier_header_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole file; 0 means that there is none."""
        return self.kept_bytes + self.classifier_bytes

    @property
    def exact(self) -> bool:
        """True when no kept row is a bound."""
        return all(row.exact for row in self.rows)

    def fields(self) -> list[dict[str, Any]]:
        """Return name and bytes of every kept row and the header; their sum is kept_bytes."""
        rows = [{"name": row.name, "bytes": row.bytes} for row in self.rows]
        return rows + ([{"name": HEADER, "bytes": self.header_bytes}] if self.rows else [])


def entry(name: str, increment: int | None, part: str) -> str:
    """Return the name in the file of a part of a field: ``name@increment:part``."""
    return name + ("" if increment is None else f"@{increment}") + (f":{part}" if part else "")


def metadata(fields: Sequence[Field]) -> dict[str, str]:
    """Return what the file says about fields that are present: the codecs other than raw."""
    return {field.name: field.codec for field in fields if field.codec != "raw"}


def account(
    fields: Sequence[Field], specs: Mapping[str, Mapping[str, Spec]], *, measured: bool
) -> MemoryPlan:
    """Return where the bytes of a file with ``specs`` (by field, by name in the file) are."""

    def rows(scope: str) -> tuple[Row, ...]:
        return tuple(
            Row(f.name, container.layout(specs[f.name]).data_bytes,
                measured or codecs.get(f.codec).exact)
            for f in fields if f.scope == scope and f.name in specs
        )  # fmt: skip

    def header(chosen: Sequence[Field]) -> int:
        entries = {name: spec for f in chosen for name, spec in specs[f.name].items()}
        return container.layout(entries, metadata(chosen)).header_bytes if entries else 0

    present = [f for f in fields if f.name in specs]
    kept = header([f for f in present if f.scope == "kept"])
    return MemoryPlan(rows("kept"), kept, rows("classifier"), header(present) - kept)


def field_specs(
    field: Field, dimensions: Dimensions, size: Literal["bound", "least"] = "bound"
) -> Specs:
    """Return the largest (or least) entries in the file of a field, over all increments.

    Raises:
        ValueError: the shape has an unknown symbol or tree.
    """
    codec = codecs.get(field.codec)
    found: dict[str, Spec] = {}
    count = len(dimensions.increments)
    if isinstance(codec, Growing):
        codec = codec.after(count)
    for increment in field.increments(count):
        shape = dimensions.shapes(field, increment)
        if isinstance(shape, Mapping):
            found[entry(field.name, None, TREE)] = ("U8", tree_index(shape).shape)
            shape = (tree_size(shape),)
        parts = (codec.bound if size == "bound" else codec.least)(field.dtype, shape)
        found |= {entry(field.name, increment, part): spec for part, spec in parts.items()}
    return found


def plan(
    fields: Sequence[Field],
    dimensions: Dimensions,
    *,
    size: Literal["bound", "least"] = "bound",
) -> MemoryPlan:
    """Return the bytes that ``fields`` will take at ``dimensions``, container header included.

    Exact for fixed-size codecs. For the others rows are upper bounds, or with
    ``size="least"`` what a file will hardly stay below: the figure to refuse on.

    Raises:
        ValueError: a shape has an unknown symbol or tree.
        UsageError: a field has an unknown codec.
    """
    specs = {field.name: field_specs(field, dimensions, size) for field in fields}
    return account(fields, specs, measured=False)
