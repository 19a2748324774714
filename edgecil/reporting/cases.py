"""Which methods a published table is filled with, and the bytes that they plan to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgecil import registry
from edgecil.bench.runner import Variant
from edgecil.learning.planning import kept_plan
from edgecil.memory.budget import Budget
from edgecil.memory.plan import MemoryPlan, Row
from edgecil.memory.report import Comparison, MethodMemory, method_memory
from edgecil.method import Recipe
from edgecil.nets.net import NetSpec
from edgecil.reporting.protocol import Dataset, MemoryProtocol
from edgecil.reporting.training import training_memory
from edgecil.settings import PRESETS
from edgecil.versions import recipe_of


@dataclass(frozen=True)
class Case:
    """A method, written like ``lwm:gamma=0.2``, and how its exemplars are stored."""

    method: str
    codec: str | None = None
    """None for a method that stores no images."""

    @property
    def recipe(self) -> Recipe:
        """The method's recipe with this codec."""
        variant = Variant.parse(self.method)
        return recipe_of(variant.method, variant.options, self.codec or "raw")

    @property
    def stores_images(self) -> bool:
        """Whether the codec matters; references to files have one of their own."""
        return self.recipe.stored_images is not None


def cases(wanted: MemoryProtocol, dataset: Dataset) -> list[Case]:
    """Return every installed method and every combination of installed ones, by codec."""
    known = registry.methods()
    names = [name for name, info in known.items() if info.kind == "method"]
    names += [c for c in wanted.combinations if all(part in known for part in c.split("+"))]
    return [
        Case(name, codec)
        for name in names
        for codec in (dataset.codecs if Case(name).stores_images else (None,))
    ]


def _spec(recipe: Recipe, dataset: Dataset) -> NetSpec:
    return NetSpec(
        dataset.arch, "cosine" if recipe.head_kind == "cosine" else "linear", recipe.head_width
    )


def planned(case: Case, wanted: MemoryProtocol, dataset: Dataset) -> MethodMemory:
    """Return what a method will keep after the protocol's increments."""
    plans = [_plan(case, wanted, dataset, n + 1) for n in range(len(wanted.increments))]
    compared = Comparison(
        dataset.name, dataset.published.get(case.method), case.codec,
        tuple(plan.kept_bytes for plan in plans),
    )  # fmt: skip
    return method_memory(case.method, plans[-1], basis="plan", compared=compared)


def _plan(case: Case, wanted: MemoryProtocol, dataset: Dataset, increments: int) -> MemoryPlan:
    recipe, groups = case.recipe, wanted.increments[:increments]
    if not recipe.fields:
        return MemoryPlan()
    preprocess = PRESETS[dataset.preprocess]
    side = preprocess.resize
    everything = recipe.selection is not None and recipe.selection.everything
    budget = Budget() if everything else Budget(total=wanted.exemplars_total)
    sizes = [dataset.images_per_class] * sum(groups)
    spec = _spec(recipe, dataset)
    found = kept_plan(recipe, spec, groups, side, budget, sizes, preprocess.size)
    if not everything:
        return found
    # There are no files to count: they stand as uncompressed images of the stored size.
    files = Row("image files", sum(sizes) * side * side * 3, exact=False)
    return replace(found, rows=(*found.rows, files))


def planned_training(
    case: Case, wanted: MemoryProtocol, dataset: Dataset
) -> Mapping[str, int] | None:
    """Return the training memory of the last increment by kind; None where it has no plan."""
    recipe = case.recipe
    return training_memory(
        recipe, _spec(recipe, dataset), wanted.increments, PRESETS[dataset.preprocess],
        dataset.images_per_class * wanted.increments[-1],
    )  # fmt: skip
