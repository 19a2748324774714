"""A classifier and what is kept beside it, in memory and as the files of a version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgecil.errors import WorkspaceError
from edgecil.memory.fields import Field
from edgecil.memory.store import Store
from edgecil.nets.build import build, load_arrays, net_arrays
from edgecil.nets.net import Net, NetSpec
from edgecil.nets.rules import Rule, build_rule, rule_arrays
from edgecil.workspace import MEMORY, REMOVED, WEIGHTS, VersionManifest, Workspace
from edgecil_runtime import container

Ranges = Mapping[str, tuple[float, float]]

# Part of the int8 classifier, not of the memory between increments: an int8 graph contains
# them as scales and zero points.
RANGES = Field(
    "ranges", ("R", 2), "activation ranges for an int8 export that needs no data",
    scope="classifier",
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A network, the rule that makes scores of its outputs, and the kept memory."""

    net: Net
    rule: Rule
    kept: Store
    ranges: Ranges = field(default_factory=dict)
    """Range in which every activation tensor of the exported graph is rounded to 8 bits."""

    def folded(self) -> Model:
        """Return a model with the same scores and as much of the rule in the head as fits there."""
        net, rule = self.rule.folded(self.net)
        return replace(self, net=net, rule=rule)


def weight_file(model: Model) -> bytes:
    """Return the bytes of ``weights.safetensors``: network, rule and activation ranges."""
    arrays: dict[str, Any] = {f"net/{n}": a for n, a in net_arrays(model.net).items()}
    arrays |= {f"rule/{n}": a for n, a in rule_arrays(model.rule).items()}
    metadata = {}
    if model.ranges:
        arrays[RANGES.name] = np.array(list(model.ranges.values()), dtype=np.float32)
        metadata["range_names"] = json.dumps(list(model.ranges))
    return container.encode(arrays, metadata)


def classifier_bytes(model: Model) -> int:
    """Return the bytes of the classifier itself: network and rule, without container header."""
    arrays = [*net_arrays(model.net).values(), *rule_arrays(model.rule).values()]
    return sum(int(a.nbytes) for a in arrays)


def load(workspace: Workspace, manifest: VersionManifest, fields: tuple[Field, ...]) -> Model:
    """Return the model of a version; ``fields`` declare its kept memory.

    Raises:
        WorkspaceError: a file is missing or damaged.
    """
    weights = workspace.read(manifest.version, WEIGHTS)
    if weights is None:
        raise WorkspaceError(f"version {manifest.version} cannot be used: {REMOVED}")
    arrays, metadata = container.decode(weights)

    def part(prefix: str) -> dict[str, Any]:
        return {n[len(prefix) :]: np.array(a) for n, a in arrays.items() if n.startswith(prefix)}

    net = build(NetSpec.from_json(manifest.net), len(manifest.classes))
    load_arrays(net, part("net/"))
    rule = build_rule(manifest.rule["kind"], part("rule/"))
    ranges = {}
    if RANGES.name in arrays:
        names = json.loads(metadata["range_names"])
        pairs = zip(names, arrays[RANGES.name].tolist(), strict=True)
        ranges = {name: (low, high) for name, (low, high) in pairs}
    workspace.read(manifest.version, MEMORY)  # checks the hash
    kept = Store.load(workspace.path(manifest.version) / MEMORY, fields)
    return Model(net.eval().requires_grad_(False), rule.eval(), kept, ranges)
