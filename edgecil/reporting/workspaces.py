"""The memory report of a workspace: what every method keeps between its increments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgecil import registry
from edgecil.errors import BudgetError
from edgecil.learning.planning import kept_plan
from edgecil.memory.budget import Budget
from edgecil.memory.plan import HEADER, MemoryPlan, Row
from edgecil.memory.report import MethodMemory, method_memory, to_csv, to_json
from edgecil.method import Recipe
from edgecil.nets.net import NetSpec
from edgecil.reporting.training import training_memory
from edgecil.versions import recipe_of
from edgecil.workspace import FOREIGN, VersionManifest, Workspace


@dataclass(frozen=True)
class MemoryReport:
    """What every method keeps, fewest bytes first; the classifier itself is not in it."""

    rows: tuple[MethodMemory, ...]
    classifier_bytes: int
    """Bytes of network and rule, which every method has."""
    notes: tuple[str, ...] = ()
    """Methods that are left out, and why."""
    planned_with: Mapping[str, Any] = field(default_factory=dict)
    """What the planned rows assume: ``budget`` (one number of bytes, of exemplars per class or in
    ``total``), the ``codec`` of exemplars, their ``side`` in pixels."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as one JSON object."""
        rest = {
            "classifier_bytes": self.classifier_bytes,
            "notes": list(self.notes),
            "planned_with": dict(self.planned_with),
        }
        return {**to_json(self.rows), **rest}

    def to_csv(self) -> str:
        """Return the report as CSV text, one line per field and one total per method."""
        return to_csv(self.rows)


BASELINE = "lwf-mc"
"""The method whose kept memory is zero in M2KD's Table 2."""


def _with_references(
    plan: MemoryPlan, recipe: Recipe, lineage: list[VersionManifest]
) -> MemoryPlan:
    """Return the plan with the files that a method refers to: somebody must keep them."""
    if recipe.selection is None or not recipe.selection.everything:
        return plan
    size = sum(m.training["new_image_bytes"] for m in lineage)
    return dataclasses.replace(plan, rows=(*plan.rows, Row("image files", size)))


def _sizes(lineage: list[VersionManifest]) -> list[int]:
    """Return the number of images of every class, over all increments."""
    sizes: list[int] = []
    for manifest in reversed(lineage):
        sizes += manifest.training["new_images_per_class"]
        for more in manifest.training.get("updated", ()):
            sizes[more["class"]] += more["images"]
    return sizes


def _planned(name: str, lineage: list[VersionManifest]) -> MethodMemory:
    manifest = lineage[0]
    kept = manifest.kept
    recipe = recipe_of(name, {}, kept["codec"], kept.get("exemplar_size"))
    everything = recipe.selection is not None and recipe.selection.everything
    limits = Budget() if everything else Budget(**kept["budget"])
    sizes = _sizes(lineage)
    # An increment of known classes alone added no row, no snapshot, nothing per class.
    groups = tuple(group for group in manifest.groups if group)
    spec = NetSpec.from_json(manifest.net)
    entry = manifest.input
    plan = kept_plan(recipe, spec, groups, entry.resize, limits, sizes, entry.size)
    plan = _with_references(plan, recipe, lineage)
    held = training_memory(recipe, spec, groups, manifest.input)
    return method_memory(
        name, plan, basis="plan", training_bytes=None if held is None else sum(held.values())
    )


def _measured(lineage: list[VersionManifest]) -> MethodMemory:
    manifest = lineage[0]
    fields = {f["name"]: f["bytes"] for f in manifest.kept["fields"]}
    header = fields.pop(HEADER, 0)
    kept = MemoryPlan(tuple(Row(name, size) for name, size in fields.items()), header)
    if manifest.method != FOREIGN:
        recipe = recipe_of(manifest.method, manifest.options, manifest.kept["codec"])
        kept = _with_references(kept, recipe, lineage)
    spent = sum(manifest.training["memory_bytes"].values())
    return method_memory(manifest.method, kept, basis="measured", training_bytes=spent)


def report(workspace: Workspace) -> MemoryReport:
    """Return what every method keeps after the workspace's increments, in bytes.

    Measured for the method that was used, planned for the others under the same budget, codec
    and network.

    Raises:
        WorkspaceError: there is no workspace.
    """
    manifest = workspace.manifest()
    lineage = workspace.increments(manifest.version)
    rows, left_out = [_measured(lineage)], []
    for name, info in registry.methods().items():
        if info.kind != "method" or name == manifest.method:
            continue
        try:
            rows.append(_planned(name, lineage))
        except BudgetError as error:
            left_out.append(f"{name} is left out: {error.message}")
    rows.sort(key=lambda row: (row.kept_bytes, row.method != BASELINE, row.method))
    return MemoryReport(tuple(rows), manifest.classifier_bytes, tuple(left_out), _assumed(manifest))


def _assumed(manifest: VersionManifest) -> dict[str, Any]:
    """Return under which budget, and as what, exemplars are planned."""
    kept = manifest.kept
    side = kept.get("exemplar_size") or manifest.input.resize
    return {"budget": dict(kept["budget"]), "codec": kept["codec"], "side": side}
