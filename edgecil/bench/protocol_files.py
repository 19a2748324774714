"""Protocols in TOML files: those that come with edgecil, and a user's own."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from edgecil.bench.protocol import Protocol, Published
from edgecil.errors import UsageError
from edgecil.settings import Augment, Optim, Preprocess, Schedule, Training
from edgecil.spelling import nearest

SUFFIX = ".toml"
Values = Mapping[str, Any]
Kinds = Mapping[str, Any]
"""The type of every key of a table, by name."""
T = TypeVar("T")


def _kinds(cls: type[Any], *without: str) -> dict[str, Any]:
    return {name: kind for name, kind in get_type_hints(cls).items() if name not in without}


_OPTIM, _SCHEDULE = _kinds(Optim), _kinds(Schedule)
_TRAINING: Kinds = {
    **_kinds(Training, "optim"),
    **{name: _OPTIM[name] for name in ("lr", "momentum", "weight_decay")},
    **{name: _SCHEDULE[name] for name in ("milestones", "factor", "warmup")},
    "schedule": _SCHEDULE["kind"],
}


def _frozen(values: Values) -> dict[str, Any]:
    """Return the values of a TOML table with tuples in place of lists."""
    return {
        key: tuple(v) if isinstance(v, list) else _frozen(v) if isinstance(v, dict) else v
        for key, v in values.items()
    }


def _table(where: str, values: Any) -> Values:
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: expected a table, got {values!r}")
    return values


def _is(value: Any, kind: Any) -> bool:
    """Return whether a value of a TOML file has a type; whole numbers are numbers, too."""
    if isinstance(kind, UnionType):
        return any(_is(value, one) for one in get_args(kind))
    if get_origin(kind) is Literal:  # which ones there are is for the dataclass to say
        return isinstance(value, str)
    if get_origin(kind) is tuple:
        first, *more = get_args(kind)
        size = isinstance(value, tuple) and (more == [...] or len(value) == 1 + len(more))
        return size and all(_is(item, first) for item in value)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def _words(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(_words(one) for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) is tuple:
        first, *more = get_args(kind)
        count = "" if more == [...] else f"{1 + len(more)} "
        return f"a list of {count}{_words(first).removeprefix('a ')}s"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text")


def _check(where: str, values: Any, kinds: Kinds, required: Sequence[str] = ()) -> None:
    """Refuse a table with a key that is not known, a value of another type, or without a key."""
    for key, value in _table(where, values).items():
        if key not in kinds:
            raise UsageError(f"{where}: unknown key {key!r}", hint=nearest(key, tuple(kinds)))
        if kinds[key] is Mapping:
            _table(f"{where}, [{key}]", value)
        elif not _is(value, kinds[key]):
            shown = list(value) if isinstance(value, tuple) else value
            raise UsageError(f"{where}: {key} must be {_words(kinds[key])}, got {shown!r}")
    missing = next((key for key in required if key not in values), None)
    if missing is not None:
        raise UsageError(f"{where}: the key {missing!r} is missing")


def _valid(where: str, make: Callable[[], T]) -> T:
    """Return what ``make`` makes; what it refuses is said to stand at ``where``."""
    try:
        return make()
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", hint=error.hint) from None


def _built(cls: Callable[..., T], where: str, values: Values, *, whole: bool = False) -> T:
    """Return a value of a dataclass from a table of its fields; ``whole``: of all its fields."""
    kinds = get_type_hints(cls)
    _check(where, values, kinds, tuple(kinds) if whole else ())
    return _valid(where, lambda: cls(**values))


def _training(where: str, values: Values) -> Training:
    """Return a training as ``learn`` has it, but for what is given; milestones are in epochs."""
    needs = {"milestones": "epochs", "factor": "milestones"}
    _check(where, values, _TRAINING, [other for key, other in needs.items() if key in values])
    rest = dict(values)
    decay: dict[str, Any] = {key: rest.pop(key) for key in ("factor", "warmup") if key in rest}
    kind, milestones = rest.pop("schedule", None), rest.pop("milestones", None)
    if milestones is not None:
        if kind is not None:
            raise UsageError(f"{where}: milestones are a schedule: leave out 'schedule'")
        epochs = rest["epochs"]
        if not milestones or not all(0 < m < epochs for m in milestones):
            raise UsageError(f"{where}: milestones must be between 0 and {epochs} epochs")
        decay |= {"kind": "step", "milestones": tuple(m / epochs for m in milestones)}
    elif kind == "step":
        raise UsageError(f"{where}: the key 'milestones' is missing", hint="or schedule = 'cosine'")
    elif kind is not None:
        decay["kind"] = kind

    def made() -> Training:
        plain = Training()
        schedule = replace(plain.optim.schedule, **decay)
        return replace(plain, optim=replace(plain.optim, schedule=schedule)).updated(**rest)

    return _valid(where, made)


def _published(where: str, values: Values) -> dict[str, Published]:
    kinds, found = get_type_hints(Published), {}
    for method, row in values.items():
        _check(f"{where}, {method}", row, kinds, ("table",))
        found[method] = Published.of(row)
    return found


_READERS: Mapping[str, Callable[[str, Values], Any]] = {
    "training": _training,
    "augment": partial(_built, Augment),
    "preprocess": partial(_built, Preprocess, whole=True),
    "published": _published,
}
_KINDS: Kinds = {**_kinds(Protocol, "name"), **dict.fromkeys(_READERS, Mapping)}


def _made(
    name: str, file: str, values: Values, split: str = "", own: Sequence[str] = ()
) -> Protocol:
    """Return a protocol; the tables ``own`` are written below that of its ``split``."""
    _check(file, values, _KINDS, ("summary", "layout", "split"))
    made = dict(values)
    for key, read in _READERS.items():
        if key in made:
            place = f"splits.{split}.{key}" if key in own else key
            made[key] = read(f"{file}, [{place}]", made[key])
    return _valid(f"{file}, [splits.{split}]" if split else file, lambda: Protocol(name, **made))


def parse(name: str, text: str) -> dict[str, Protocol]:
    """Return the protocols in the text of a TOML file, by name.

    A file describes one, called ``name``; or several, called ``<name>-<split>``, of which each
    table ``[splits.<split>]`` says what is its own.

    Raises:
        UsageError: not TOML, a key that no protocol has, or a value that it cannot have.
    """
    file = f"{name}{SUFFIX}"
    try:
        values = _frozen(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    splits = values.pop("splits", None)
    if splits is None:
        return {name: _made(name, file, values)}
    _check(file, values, _KINDS, ("summary",))
    found = {}
    for split, own in _table(f"{file}, [splits]", splits).items():
        _check(f"{file}, [splits.{split}]", own, _KINDS, ("split",))
        whole = {**values, **own, "summary": f"{values['summary']}: {own['split']}"}
        found[f"{name}-{split}"] = _made(f"{name}-{split}", file, whole, split, tuple(own))
    return found


def families() -> Mapping[str, Mapping[str, Protocol]]:
    """Return the protocols that come with edgecil, those of one file together."""
    folder = resources.files("edgecil.bench") / "protocols"
    found = sorted((p for p in folder.iterdir() if p.name.endswith(SUFFIX)), key=lambda p: p.name)
    names = [p.name.removesuffix(SUFFIX) for p in found]
    return {
        name: parse(name, path.read_text(encoding="utf-8"))
        for name, path in zip(names, found, strict=True)
    }


def protocols() -> Mapping[str, Protocol]:
    """Return the protocols that come with edgecil, by name."""
    return {name: made for members in families().values() for name, made in members.items()}


def protocol(name: str) -> Protocol:
    """Return a protocol by its name, or the one in a TOML file: ``mine.toml``.

    Of a file with several ``mine.toml:b0-5`` is the one with that split.

    Raises:
        UsageError: there is none of that name, or the file cannot be read.
    """
    stem, suffix, split = name.rpartition(SUFFIX)
    if not suffix or (split and not split.startswith(":")):
        return _named(name, protocols())
    try:
        found = parse(Path(stem).name, Path(stem + SUFFIX).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{stem}{SUFFIX}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{stem}{SUFFIX} cannot be read: {error}") from None
    if len(found) == 1 and not split:
        return next(iter(found.values()))
    own = {key.removeprefix(f"{Path(stem).name}-"): made for key, made in found.items()}
    if not split:
        choices = ", ".join(f"{name}:{key}" for key in own)
        raise UsageError(f"{name} holds {len(own)} protocols", hint=f"choose one: {choices}")
    return _named(split[1:], own)


def _named(name: str, known: Mapping[str, Protocol]) -> Protocol:
    if name not in known:
        raise UsageError(f"unknown protocol {name!r}", hint=nearest(name, tuple(known)))
    return known[name]
