"""What a version was made with: its recipe, what it keeps, its model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgecil import registry
from edgecil.manifest import FOREIGN, VersionManifest
from edgecil.memory.fields import Field
from edgecil.method import Recipe
from edgecil.model import Model, load
from edgecil.workspace import Workspace


def recipe_of(
    method: str,
    options: Mapping[str, Any],
    codec: str,
    exemplar_size: int | None = None,
    head_kind: str = "",
) -> Recipe:
    """Return the recipe of a method whose exemplars are stored with ``codec``.

    ``exemplar_size`` is their side in pixels, None that of decoded images; ``head_kind`` what
    the logits mean of the model that it continues.
    """
    recipe = registry.build(method, options).on(head_kind)
    images = recipe.stored_images
    if images is None:
        return recipe
    changes: dict[str, Any] = {"codec": codec}
    if exemplar_size is not None:
        changes["shape"] = ("K", exemplar_size, exemplar_size, 3)
    stored = dataclasses.replace(images, **changes)
    fields = tuple(stored if f is images else f for f in recipe.fields)
    return dataclasses.replace(recipe, fields=fields)


def load_version(workspace: Workspace, version: int | None = None) -> tuple[VersionManifest, Model]:
    """Return a version's manifest and model (default: the current version).

    Raises:
        WorkspaceError: there is no such version, or it is damaged.
    """
    manifest = workspace.manifest(version)
    return manifest, load(workspace, manifest, fields_of(manifest))


def recipe_of_version(manifest: VersionManifest) -> Recipe | None:
    """Return the recipe that a version was made with; None of a model trained elsewhere."""
    if manifest.method == FOREIGN:
        return None
    kept = manifest.kept
    return recipe_of(manifest.method, manifest.options, kept["codec"], kept.get("exemplar_size"))


def fields_of(manifest: VersionManifest) -> tuple[Field, ...]:
    """Return the declaration of what a version keeps."""
    recipe = recipe_of_version(manifest)
    return () if recipe is None else recipe.fields
