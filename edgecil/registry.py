"""Which methods exist, found by reading their files: no torch, no hand-kept list.

A method is a file of ``edgecil/methods`` or an entry point of the group ``edgecil.methods``;
its name is the file's with hyphens, without a trailing underscore (Windows has no files called
``aux``), its summary the first line of the docstring. Plug-ins (files with a function ``plug``)
are laid over a host, host first: ``icarl+mnemonics``. A file may be both,
with other options (``PlugOptions``) as a plug-in.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecil.errors import UsageError
from edgecil.options import make_options
from edgecil.spelling import nearest

if TYPE_CHECKING:
    from edgecil.method import Preset, Recipe


@dataclass(frozen=True)
class MethodInfo:
    """What a method's file says without being imported."""

    name: str
    summary: str
    kind: str
    """``method`` or ``plug-in``."""
    module: str
    plugs: bool = False
    """Whether it can be laid over a host; a method may do that too."""


def _describe(name: str, module: str, path: Path) -> MethodInfo:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    summary = (ast.get_docstring(tree) or "").partition("\n")[0].rstrip(".")
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    plugs = "plug" in functions
    kind = "plug-in" if plugs and "recipe" not in functions else "method"
    return MethodInfo(name, summary, kind, module, plugs)


@cache
def methods() -> Mapping[str, MethodInfo]:
    """Return every installed method by name, sorted, without importing any of them."""
    found = {}
    for path in sorted((Path(__file__).parent / "methods").glob("[!_]*.py")):
        name = path.stem.rstrip("_").replace("_", "-")
        found[name] = _describe(name, f"edgecil.methods.{path.stem}", path)
    for point in entry_points(group="edgecil.methods"):
        spec = importlib.util.find_spec(point.value)
        if spec is not None and spec.origin is not None:
            found[point.name] = _describe(point.name, point.value, Path(spec.origin))
    return dict(sorted(found.items()))


def _module(name: str, kind: str) -> Any:
    known = {
        n: i for n, i in methods().items() if i.kind == kind or (i.plugs and kind == "plug-in")
    }
    if name not in known:
        other = methods().get(name)
        if other is not None:
            if kind == "method":
                over = ", ".join(f"{host}+{name}" for host in hosts(name))
                raise UsageError(f"{name!r} is a plug-in: it comes after its host", hint=over)
            raise UsageError(f"{name!r} is a method: a host comes first", hint="write host+plug-in")
        raise UsageError(f"unknown {kind} {name!r}", hint=nearest(name, tuple(known)))
    return importlib.import_module(known[name].module)


def _plug_options(module: Any) -> Any:
    return getattr(module, "PlugOptions", module.Options)


def option_fields(method: str) -> dict[str, list[dataclasses.Field[Any]]]:
    """Return the option fields of every part of ``host+plug-in``.

    Raises:
        UsageError: a part is unknown (the nearest names are offered) or there twice.
    """
    host, *plugs = method.split("+")
    twice = next((plug for plug in plugs if plugs.count(plug) > 1), None)
    if twice is not None:
        raise UsageError(f"{method} has the plug-in {twice} twice", hint="once is enough")
    options = {host: _module(host, "method").Options}
    options |= {plug: _plug_options(_module(plug, "plug-in")) for plug in plugs}
    return {name: list(dataclasses.fields(part)) for name, part in options.items()}


def presets(method: str) -> Mapping[str, Preset]:
    """Return the presets of ``host+plug-in`` by name: a paper's settings for this combination.

    The host's, and those of each plug-in whose options the combination has. Of a file that is
    both, the presets are the method's.
    """
    host, *plugs = method.split("+")
    found: dict[str, Preset] = dict(getattr(_module(host, "method"), "PRESETS", {}))
    known = {f.name for part in option_fields(method).values() for f in part}
    for plug in plugs:
        module = _module(plug, "plug-in")
        own = {} if hasattr(module, "recipe") else getattr(module, "PRESETS", {})
        found |= {name: preset for name, preset in own.items() if known.issuperset(preset.options)}
    return found


def preset_of(method: str, name: str | None) -> Preset | None:
    """Return the preset ``name`` of ``host+plug-in``; None where none is named.

    Raises:
        UsageError: there is none of that name; the nearest are offered.
    """
    if name is None:
        return None
    known = presets(method)
    if name not in known:
        raise UsageError(f"{method} has no preset {name!r}", hint=nearest(name, list(known)))
    return known[name]


def with_preset(preset: Preset | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a preset, where there is one, and ``options`` in place of its own."""
    return {**(preset.options if preset else {}), **options}


def build(method: str, options: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe of ``method`` (``host`` or ``host+plug-in``) with ``options`` set.

    Raises:
        UsageError: an unknown method or option (the nearest are offered) or a bad value.
    """
    remaining = dict(options or {})
    fields = option_fields(method)
    known = sorted({f.name for part in fields.values() for f in part})
    for name in remaining:
        if name not in known:
            raise UsageError(f"{method} has no option {name!r}", hint=nearest(name, known))
    host, *plugs = method.split("+")
    values = {
        part: {f.name: remaining[f.name] for f in fields[part] if f.name in remaining}
        for part in fields
    }
    module = _module(host, "method")
    recipe: Recipe = module.recipe(make_options(module.Options, values[host]))
    for plug in plugs:
        module = _module(plug, "plug-in")
        recipe = _laid(module, make_options(_plug_options(module), values[plug]), recipe)
    return _named(recipe, method)


def hosts(plug: str) -> tuple[str, ...]:
    """Return the methods that a plug-in can be laid over, those that keep least first."""
    found = {}
    for name, info in methods().items():
        with contextlib.suppress(UsageError):
            if info.kind == "method" and build(f"{name}+{plug}"):
                found[name] = len(build(name).fields)
    return tuple(sorted(found, key=lambda name: (found[name], name)))


def _laid(module: Any, options: Any, host: Recipe) -> Recipe:
    """Return ``host`` with a plug-in over it and over each of its forms."""
    forms = {kind: _laid(module, options, form) for kind, form in host.forms.items()}
    # What the host promises, the plug-in may not keep.
    laid: Recipe = dataclasses.replace(
        module.plug(host, options), forms=forms, base=None, updates_known=False
    )
    return laid


def _named(recipe: Recipe, name: str) -> Recipe:
    forms = {kind: _named(form, name) for kind, form in recipe.forms.items()}
    return dataclasses.replace(recipe, name=name, forms=forms)
