"""Kept memory: the declared fields, encoded, in memory and as one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from edgecil.errors import UsageError, WorkspaceError
from edgecil.memory import codecs
from edgecil.memory.codec import Array, CodecError, ItemCodec, Parts, Size
from edgecil.memory.fields import Field
from edgecil.memory.plan import (
    TREE,
    MemoryPlan,
    account,
    entry,
    metadata,
)
from edgecil.memory.trees import flatten, unflatten
from edgecil_runtime import container

T = TypeVar("T")
Key = tuple[str, int | None]


class Store:
    """What one version keeps. Only declared fields can be written, in the declared form.

    Values are encoded when they are written: reading gives what decodes from the stored
    bytes, in this process as in the next one. Increments are counted from 1, the base.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self._fields = {field.name: field for field in fields}
        if len(self._fields) != len(fields):
            raise ValueError(f"a field is declared twice: {[f.name for f in fields]}")
        self._parts: dict[Key, dict[str, Array]] = {}
        self._trees: dict[str, Array] = {}
        self._shapes: dict[Key, tuple[int, ...]] = {}
        self._origin: Path | None = None

    @property
    def fields(self) -> tuple[Field, ...]:
        """The declarations; after :meth:`load` with the codecs that the file was written with."""
        return tuple(self._fields.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the fields that hold something, in the order of declaration."""
        present = {name for name, _ in self._parts}
        return tuple(name for name in self._fields if name in present)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def increments(self, name: str) -> tuple[int, ...]:
        """Return the increments for which a per-increment field holds an array, ascending."""
        return tuple(sorted(i for n, i in self._parts if n == name and i is not None))

    def field(self, name: str) -> Field:
        """Return the declaration of a field.

        Raises:
            KeyError: it is not declared.
        """
        if name not in self._fields:
            known = ", ".join(self._fields) or "nothing"
            raise KeyError(f"field {name!r} was not declared (declared: {known})")
        return self._fields[name]

    def write(self, name: str, value: Any, increment: int | None = None) -> None:
        """Encode and keep an array, or for a tree a mapping of arrays by leaf name.

        Raises:
            KeyError: the field was not declared.
            ValueError: shape, dtype or increment differ from the declaration.
        """
        field = self._field_at(name, increment)
        if field.is_tree:
            array = self._flatten(field, value, increment)
        else:
            array = np.asarray(value)
            _check_dtype(field, array)
            self._check_shape(field, array.shape, increment)
        parts = codecs.get(field.codec).encode(array)
        self._keep((name, increment), parts, array.shape)

    def read(self, name: str, increment: int | None = None) -> Any:
        """Return the decoded array, or for a tree the mapping of arrays; both may be changed.

        Raises:
            KeyError: the field was not declared or never written.
            WorkspaceError: the file it was loaded from is damaged.
            DataError: an image kept by reference is gone or has changed.
        """
        field = self._field_at(name, increment)
        array = self._decoded(field, self._present(name, increment))
        if not field.is_tree:
            return array
        try:
            return unflatten(array, self._trees[name])
        except (KeyError, ValueError) as error:
            raise self._damaged(name, error) from None

    def write_items(self, name: str, items: Sequence[bytes], size: Size) -> None:
        """Keep images that are already encoded by the field's codec, verbatim.

        ``size`` is the height and width of every image in pixels.

        Raises:
            KeyError: the field was not declared.
            ValueError: the shape differs from the declaration.
        """
        field = self._field_at(name, None)
        shape = (len(items), *size, 3)
        self._check_shape(field, shape, None)
        self._keep((name, None), codecs.item_codec(field.codec).join(items, size), shape)

    def items(self, name: str) -> list[bytes]:
        """Return the encoded images of a field, one by one, for :meth:`write_items`.

        Raises:
            KeyError: the field was not declared or never written.
            WorkspaceError: the file it was loaded from is damaged.
        """
        return self._item_part(name, lambda codec, parts: codec.split(parts))

    def item_size(self, name: str) -> Size:
        """Return height and width in pixels of the encoded images of a field.

        Raises:
            KeyError: the field was not declared or never written.
            WorkspaceError: the file it was loaded from is damaged.
        """
        return self._item_part(name, lambda codec, parts: codec.size(parts))

    def _item_part(self, name: str, ask: Callable[[ItemCodec, Parts], T]) -> T:
        codec = codecs.item_codec(self._field_at(name, None).codec)
        try:
            return ask(codec, self._present(name, None))
        except CodecError as error:
            raise self._damaged(name, error) from None

    def copy(self, name: str, source: Store) -> None:
        """Take over all that another store holds of a field, without encoding it again.

        Raises:
            KeyError: the field is not declared here or not written there.
            ValueError: the two declarations differ.
        """
        if replace(self.field(name), why="") != replace(source.field(name), why=""):
            raise ValueError(f"field {name}: the two stores declare it differently")
        keys = [key for key in source._parts if key[0] == name]
        if not keys:
            raise KeyError(f"field {name!r} holds nothing to copy")
        there = self._trees.get(name, source._trees.get(name))
        if there is not None and not np.array_equal(there, source._trees[name]):
            raise ValueError(f"field {name}: the tree differs from that of other increments")
        for key in keys:
            self._parts[key] = source._parts[key]
            if key in source._shapes:
                self._shapes[key] = source._shapes[key]
        if name in source._trees:
            self._trees[name] = source._trees[name]

    def report(self) -> MemoryPlan:
        """Return where the bytes of the file are, to the byte; all zero when nothing is kept."""
        specs: dict[str, dict[str, container.Spec]] = {}
        for name in self.names:
            arrays = self._arrays((name,))
            specs[name] = {
                n: (container.dtype_name(a.dtype), tuple(a.shape)) for n, a in arrays.items()
            }
        return account(self.fields, specs, measured=True)

    def encode(self) -> bytes:
        """Return the bytes of the file; none when nothing is kept."""
        if not self._parts:
            return b""
        present = [self._fields[name] for name in self.names]
        return container.encode(self._arrays(self.names), metadata(present))

    def save(self, path: str | Path) -> int:
        """Write the file atomically and return its bytes.

        A store that keeps nothing has no file: 0 is returned, and an old file is removed.

        Raises:
            OSError: the disk is full or the folder cannot be written; nothing was changed.
        """
        data = self.encode()
        if data:
            container.write_atomic(path, data)
        else:
            Path(path).unlink(missing_ok=True)
        return len(data)

    @classmethod
    def load(cls, path: str | Path, fields: Sequence[Field]) -> Self:
        """Return the store in a file; where there is no file, one that keeps nothing.

        Raises:
            WorkspaceError: the file is damaged, or holds what ``fields`` do not declare.
        """
        store = cls(fields)
        store._origin = Path(path)
        if not store._origin.exists():
            return store
        try:
            arrays, codec_names = container.read(path)
        except (OSError, container.ContainerError) as error:
            raise WorkspaceError(f"kept memory is damaged: {error}") from None
        try:
            store._take(arrays, codec_names)
        except (KeyError, ValueError, UsageError) as error:
            text = error.args[0] if error.args else error
            raise WorkspaceError(f"kept memory {path} does not fit its method: {text}") from None
        return store

    def _take(self, arrays: Mapping[str, Array], codec_names: Mapping[str, str]) -> None:
        for name, codec in codec_names.items():
            codecs.get(codec)
            self._fields[name] = replace(self.field(name), codec=codec)
        found: dict[Key, dict[str, Array]] = {}
        for stored, array in arrays.items():
            whole, _, part = stored.partition(":")
            name, at, number = whole.partition("@")
            if part == TREE and not at and self.field(name).is_tree:
                self._trees[name] = array
                continue
            key = (name, int(number) if at else None)
            self._field_at(*key)
            found.setdefault(key, {})[part] = array
        for name in {name for name, _ in found} - set(codec_names):
            self._fields[name] = replace(self._fields[name], codec="raw")
        for key, parts in found.items():
            field = self._fields[key[0]]
            if field.codec == "raw" and not field.is_tree:
                if set(parts) != {""}:
                    raise ValueError(f"field {field.name}: parts {sorted(parts)} are not raw")
                _check_dtype(field, parts[""])
                self._check_shape(field, parts[""].shape, key[1])
                self._shapes[key] = parts[""].shape
            self._parts[key] = parts

    def _field_at(self, name: str, increment: int | None) -> Field:
        field = self.field(name)
        if field.per_increment != (increment is not None):
            wanted = "one array per increment" if field.per_increment else "one array, no increment"
            raise ValueError(f"field {name}: declared as {wanted}, got increment={increment}")
        if increment is not None and increment < 1:
            raise ValueError(f"field {name}: increments count from 1, got {increment}")
        return field

    def _present(self, name: str, increment: int | None) -> Parts:
        if (name, increment) not in self._parts:
            where = "" if increment is None else f" for increment {increment}"
            raise KeyError(f"field {name!r} holds nothing{where}")
        return self._parts[name, increment]

    def _keep(self, key: Key, parts: Parts, shape: tuple[int, ...]) -> None:
        self._parts[key] = {part: np.array(array) for part, array in parts.items()}
        self._shapes[key] = shape

    def _arrays(self, names: Sequence[str]) -> dict[str, Array]:
        found = {
            entry(name, increment, part): array
            for (name, increment), parts in self._parts.items()
            for part, array in parts.items()
            if name in names
        }
        return found | {entry(n, None, TREE): a for n, a in self._trees.items() if n in names}

    def _decoded(self, field: Field, parts: Parts) -> Array:
        try:
            return codecs.get(field.codec).decode(parts)
        except CodecError as error:
            raise self._damaged(field.name, error) from None

    def _damaged(self, name: str, error: Exception) -> WorkspaceError:
        where = f"{self._origin}: " if self._origin else ""
        return WorkspaceError(f"{where}field {name} is damaged: {error}")

    def _flatten(self, field: Field, value: Any, increment: int | None) -> Array:
        if not isinstance(value, Mapping):
            raise ValueError(f"field {field.name}: a tree takes a mapping of arrays")
        leaves = {str(name): np.asarray(leaf) for name, leaf in value.items()}
        for leaf in leaves.values():
            _check_dtype(field, leaf)
        try:
            flat, index = flatten(leaves)
        except ValueError as error:
            raise ValueError(f"field {field.name}: {error}") from None
        others = [i for n, i in self._parts if n == field.name and i != increment]
        if others and not np.array_equal(index, self._trees[field.name]):
            raise ValueError(f"field {field.name}: the tree differs from that of other increments")
        self._trees[field.name] = index
        return flat

    def _check_shape(self, field: Field, shape: tuple[int, ...], increment: int | None) -> None:
        """Refuse a shape that contradicts the declaration or what is already kept."""
        declared = field.axes
        kept = self._symbols(field.name, increment)
        known = dict(kept)
        good = not field.is_tree and len(declared) == len(shape)
        for axis, size in zip(declared, shape, strict=False):
            wanted = known.setdefault(axis, size) if isinstance(axis, str) else axis
            good = good and size == wanted
        if not good:
            have = {symbol: size for symbol, size in kept.items() if symbol in declared}
            raise ValueError(
                f"field {field.name}: shape {shape} is not {declared}"
                + (f" with {have}" * bool(have))
            )

    def _symbols(self, but: str, increment: int | None) -> dict[str, int]:
        """Return the values of the symbols in the other arrays of the same increment."""
        found: dict[str, int] = {}
        for (name, other), shape in self._shapes.items():
            declared = self._fields[name]
            if name != but and other == increment and not declared.is_tree:
                pairs = zip(declared.axes, shape, strict=True)
                found |= {symbol: size for symbol, size in pairs if isinstance(symbol, str)}
        return found


def _check_dtype(field: Field, array: Array) -> None:
    try:
        dtype = container.dtype_name(array.dtype)
    except container.ContainerError as error:
        raise ValueError(f"field {field.name}: {error}") from None
    if dtype != field.dtype:
        raise ValueError(f"field {field.name}: dtype {dtype} is not {field.dtype}")
