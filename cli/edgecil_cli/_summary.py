"""What a version and a plan look like in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgecil.units import count, format_bytes, format_seconds
from edgecil.workspace import VersionManifest
from edgecil_cli._output import Output, percent
from edgecil_cli._tables import Column

if TYPE_CHECKING:
    from edgecil.learning.planning import LearnPlan

Field = Mapping[str, Any]


def manifest_json(manifest: VersionManifest) -> dict[str, Any]:
    """Return the manifest as a JSON object."""
    return asdict(manifest)


def fields_text(total: int, fields: Sequence[Field], *, bound: bool = False) -> str:
    """Return the kept bytes and, below them, the fields they consist of."""
    if not total:
        return "0 B: nothing beside the classifier"
    head = ("at most " if bound else "") + format_bytes(total)
    sizes = [format_bytes(f["bytes"]) for f in fields]
    wide = max(map(len, sizes), default=0)
    lines = [f"{size:>{wide}} {f['name']}" for size, f in zip(sizes, fields, strict=True)]
    return "\n".join([head, *lines])


def overall(manifest: VersionManifest) -> float | None:
    """Return the accuracy over all classes, None when some were not measured."""
    test = manifest.test
    if not test:
        return None
    pairs = zip(manifest.groups, test["by_increment"], strict=True)
    missing = any(group and rate is None for group, rate in pairs)
    return None if missing else test["top1"]


def learned(new: int, updated: int) -> str:
    """Return what an increment learned, as in ``2 new classes and more images of 1 known``."""
    more = f"more images of {count(updated, 'known class')}"
    if not new and updated:
        return more
    return count(new, "new class") + (f" and {more}" if updated else "")


def accuracy_rows(manifest: VersionManifest) -> list[tuple[str, str, str]]:
    """Return what, how many classes, and their accuracy."""
    test = manifest.test or {}
    seen = len(manifest.classes)
    new = manifest.groups[-1]
    rows = [("all", f"{seen}", percent(overall(manifest)))]
    if 0 < new < seen:
        old = ("old", f"{seen - new}", percent(test.get("old")))
        rows = [old, ("new", f"{new}", percent(test.get("new"))), *rows]
    return rows


def _speed(training: Mapping[str, Any]) -> str:
    device, precision = training.get("device", ""), training.get("precision", "")
    rate = f"{training['images_per_second']:,.0f} images/s"
    return f"{format_seconds(training['seconds'])}, {rate} on {device} ({precision})"


def _tested(manifest: VersionManifest) -> str:
    if manifest.test is None:
        return "not yet: give --test-data or --val-fraction"
    images = f"on {count(manifest.test['n'], 'image')}"
    return images if overall(manifest) is not None else f"{images}, which show some classes only"


def show_version(output: Output, manifest: VersionManifest, path: str) -> None:
    """Print what a new version knows, how well, and what it keeps."""
    new = learned(manifest.groups[-1], len(manifest.training.get("updated", ())))
    output.print(f"version {manifest.version}: {new}, {len(manifest.classes)} in all")
    output.print()
    output.table(
        [Column("classes"), Column("count", right=True), Column("accuracy", right=True)],
        accuracy_rows(manifest),
    )
    output.print()
    kept, training = manifest.kept, manifest.training
    output.pairs(
        [
            ("tested", _tested(manifest)),
            ("method", manifest.method),
            ("kept", fields_text(kept["bytes"], kept["fields"])),
            ("classifier", format_bytes(manifest.classifier_bytes)),
            ("time", _speed(training)),
            ("path", path),
        ]
    )


def show_plan(output: Output, plan: LearnPlan) -> None:
    """Print what learning would do and cost."""
    new = learned(len(plan.classes_new), len(plan.classes_updated))
    output.print(f"plan: {new} beside {plan.classes_old} known, with {plan.method}")
    output.print()
    where = "streamed from disk" if plan.images_on_disk else "in memory"
    images = f"{count(plan.images, 'new image')}, {format_bytes(plan.image_bytes)} {where}"
    if plan.kept_images:
        images += f", {count(plan.kept_images, 'kept image')}"
    rows = [
        ("network", f"{plan.arch}, images of {plan.image_size} x {plan.image_size} pixels"),
        ("data", images),
        *(("phase", _phase(phase)) for phase in plan.phases),
        ("time", f"about {format_seconds(plan.seconds)} on {plan.device} ({plan.precision})"),
        (
            "keeps",
            fields_text(
                plan.kept["bytes"], plan.kept["fields"], bound=plan.kept["basis"] == "bound"
            ),
        ),
        ("training", _training(plan.training_bytes)),
        ("disk", format_bytes(plan.disk_bytes)),
    ]
    output.pairs(rows)


def _phase(phase: Field) -> str:
    epochs, steps = count(phase["epochs"], "epoch"), count(phase["steps"], "step")
    return f"{phase['name']}: {epochs}, {steps}, {count(phase['images'], 'image')}"


def _training(sizes: Mapping[str, int]) -> str:
    """Return the training memory in all and by kind; released when the increment ends."""
    parts = [f"{name} {format_bytes(size)}" for name, size in sizes.items() if size]
    total = format_bytes(sum(sizes.values()))
    return f"{total} while it runs: {', '.join(parts)}" if parts else total
