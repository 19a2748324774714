"""The cards of all methods as one Markdown document: ``python -m edgecil.reporting.cards FILE``.

Nothing in it is written by hand: texts, options and presets are those of the methods' files, kept
and training memory are planned from their declarations, accuracies are those of result files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from edgecil import registry
from edgecil.bench import results
from edgecil.cards import Card, card, paper, preset_text, text
from edgecil.learning.planning import kept_plan
from edgecil.learning.request import DEFAULT_PER_CLASS, default_codec
from edgecil.memory.budget import Budget
from edgecil.memory.fields import IMAGES
from edgecil.nets.net import NetSpec
from edgecil.registry import MethodInfo
from edgecil.reporting.training import training_memory
from edgecil.settings import CIFAR
from edgecil.units import format_bytes
from edgecil.versions import recipe_of

GROUPS = (10, 10)
PER_CLASS = 500
CODEC = default_codec(None)
HEAD = f"""# Methods

Made by `make docs` from the methods' own files and from the results in this repository: do not
edit. `edgecil methods NAME` shows the same description, options and presets. How to write one:
[adding-a-method.md](adding-a-method.md).

Bytes are planned, for ResNet-32 on images of 32 pixels after the second of two increments of ten
classes with {PER_CLASS} images each, {DEFAULT_PER_CLASS} exemplars of each class stored as
{CODEC}. Training memory is what a method holds only while it learns: teachers, gradients,
optimiser, modules of its own; images and activations depend on the batch and are not in it.
Accuracies are means over seeds, of the results of `edgecil bench` in [results](results).
"""


def document(folder: Path) -> str:
    """Return the document; ``folder`` holds folders of results of ``bench``, by protocol."""
    numbers = _numbers(folder)
    speeds = _speeds(folder / "training-speed.json")
    parts = [HEAD]
    for name, info in registry.methods().items():
        if info.module.startswith("edgecil."):  # what else is installed here is not ours
            parts.append(_section(info, numbers.get(name, []), speeds.get(name)))
    return "\n".join(parts)


@cache
def _host(plug: str) -> str:
    return f"{registry.hosts(plug)[0]}+{plug}"


def _section(info: MethodInfo, numbers: Sequence[str], speed: float | None) -> str:
    name = info.name if info.kind == "method" else _host(info.name)
    found = card(name)
    own = [option for option in found.options if option["part"] == info.name]
    title, _, rest = _own(found, info).replace("``", "`").partition("\n")
    facts = [*_uses(info), *_memory(name)]
    if speed is not None:
        facts.append(
            ("training speed", f"{speed:.0f} images/s ([conditions](../README.md#numbers))")
        )
    facts += [("paper", paper(info.name))] if paper(info.name) else []
    lines = [f"## `{info.name}`", "", f"**{title}**", rest, ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts)]
    if own:
        lines += ["", "| option | default | values | |", "|---|---|---|---|"]
        lines += [
            f"| `{o['name']}` | {text(o['default'])} | {o['range']} | {o['help']} |" for o in own
        ]
    presets = _presets(info)
    if presets:
        lines += ["", "| preset | |", "|---|---|"]
        lines += [f"| `{key}` | {words} |" for key, words in presets.items()]
    if numbers:
        lines += ["", "| protocol | as | average | at the end | kept | seeds |"]
        lines += ["|---|---|---|---|---|---|", *numbers]
    return "\n".join(lines) + "\n"


def _presets(info: MethodInfo) -> dict[str, str]:
    """Return the presets in words: a method's, or what a plug-in adds to those of its hosts."""
    if info.kind == "method":
        return {key: preset_text(value) for key, value in card(info.name).presets.items()}
    found: dict[str, str] = {}
    for host in registry.hosts(info.name):
        known, plugged = card(host).presets, card(f"{host}+{info.name}").presets
        own = {key: value for key, value in plugged.items() if key not in known}
        found |= {key: preset_text(value) for key, value in own.items()}
    return found


def _own(found: Card, info: MethodInfo) -> str:
    """Return the description of a plug-in without its host's, of a method as it is."""
    if info.kind == "method":
        return found.description
    host = card(found.name.partition("+")[0]).description
    return found.description.removeprefix(host).strip()


def _memory(name: str) -> list[tuple[str, str]]:
    recipe = recipe_of(name, {}, CODEC)
    everything = recipe.selection is not None and recipe.selection.everything
    budget = Budget() if everything else Budget(per_class=DEFAULT_PER_CLASS)
    spec = NetSpec("resnet32", "cosine" if recipe.head_kind == "cosine" else "linear")
    sizes = [PER_CLASS] * sum(GROUPS)
    plan = kept_plan(recipe, spec, GROUPS, CIFAR.resize, budget, sizes)
    bound = "" if plan.exact else "at most "
    whys = {item.name: item.why for item in recipe.fields}
    rows = [f"`{r.name}`, {format_bytes(r.bytes)}: {whys[r.name]}" for r in plan.rows]
    kept = "<br>".join([f"{bound}{format_bytes(plan.kept_bytes)}", *rows]) if rows else "nothing"
    held = training_memory(recipe, spec, GROUPS, CIFAR)
    spent = "not planned: it depends on values"
    if held is not None:
        parts = ", ".join(f"{kind} {format_bytes(size)}" for kind, size in held.items() if size)
        spent = f"{format_bytes(sum(held.values()))}: {parts}" if parts else "nothing"
    images = any(item.name == IMAGES for item in recipe.fields)
    forms = " or ".join([recipe.head_kind, *recipe.forms])
    return [
        ("keeps between increments", kept),
        ("holds while it trains", spent),
        ("needs old images", "yes, those that are kept" if images else "no"),
        ("outputs", forms),
        ("more images of known classes", "yes" if recipe.updates_known else "no"),
    ]


def _uses(info: MethodInfo) -> list[tuple[str, str]]:
    if not info.plugs:
        return []
    over = ", ".join(f"`{host}+{info.name}`" for host in registry.hosts(info.name))
    return [
        ("as a plug-in", over if info.kind == "method" else f"{over}; below: {_host(info.name)}")
    ]


def _numbers(folder: Path) -> dict[str, list[str]]:
    """Return table rows of every method, from the results of all protocols."""
    found: dict[str, list[str]] = {}
    for place in sorted(path for path in folder.glob("*") if path.is_dir()):
        for row in results.summaries(results.load(place)):
            method = str(row.runs[0]["method"]).rpartition("+")[2]
            average, kept = row.mean("average"), row.kept_bytes
            shown = "" if average is None else f"{100 * average:.1f} %"
            found.setdefault(method, []).append(
                f"| [{place.name}](results/{place.name}) | `{row.name}` | {shown} | "
                f"{100 * row.accuracy[-1]:.1f} % | {format_bytes(kept) if kept else '0'} | "
                f"{row.seeds} |"
            )
    return found


def _speeds(file: Path) -> dict[str, float]:
    if not file.is_file():
        return {}
    found: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))["images_per_second"]
    return found


def main(arguments: Sequence[str]) -> None:
    """Write the document to the file that is named; results lie in ``results/`` beside it."""
    file = Path(arguments[0])
    file.write_text(document(file.parent / "results"), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
