"""Training memory: what a method holds only while it learns, planned without allocating it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgecil.context import Classes, Context
from edgecil.data.images import ImageSet
from edgecil.engine.compute import Compute
from edgecil.engine.increment import Task, begin
from edgecil.engine.loop import Session
from edgecil.engine.optim import group_parameters
from edgecil.engine.selection import dimensions
from edgecil.memory.budget import Budget
from edgecil.memory.fields import IMAGES, Dimensions, Field
from edgecil.memory.store import Store
from edgecil.method import Phase, Recipe, nothing
from edgecil.model import Model
from edgecil.nets.build import build
from edgecil.nets.net import NetSpec
from edgecil.nets.rules import ArgmaxRule
from edgecil.settings import Augment, Optim, Preprocess

KINDS = ("teachers", "modules", "gradients", "optimiser", "caches")


def training_memory(
    recipe: Recipe,
    spec: NetSpec,
    groups: tuple[int, ...],
    preprocess: Preprocess,
    images: int = 0,
) -> dict[str, int] | None:
    """Return the bytes of each of ``KINDS`` while the last increment of ``groups`` is learned.

    Counted on tensors of torch's ``meta`` device, which have a shape and no storage. ``images``
    is how many new ones there are. Images and activations depend on the batch and are not
    included. None where the method's preparations read values, which such tensors do not have.
    """
    with torch.device("meta"):
        session = Session(Compute("meta", 1, "float32"), preprocess, Augment())
        sets = {"new": _blank(images, preprocess), "kept": _blank(0, preprocess)}
        try:
            ctx, phases = begin(_task(recipe, spec, groups, preprocess), sets, session)
            found = {kind: session.largest.get(kind, 0) for kind in KINDS}
            for phase in phases:
                for kind, size in _of_phase(ctx, phase, recipe).items():
                    found[kind] = max(found[kind], size)
        except (NotImplementedError, RuntimeError):  # "no data" is how meta tensors refuse
            return None
    return found


def _task(recipe: Recipe, spec: NetSpec, groups: tuple[int, ...], preprocess: Preprocess) -> Task:
    before = groups[:-1]
    previous = None
    if before:
        net = build(spec, sum(before))
        sizes = dimensions(spec, before, preprocess.resize, size=preprocess.size)
        kept = _blank_store(recipe.fields, sizes)
        previous = Model(net, ArgmaxRule(net.classes), kept)
    # Beginning is book-keeping on values (imprint, hold images out): it allocates nothing.
    recipe = replace(recipe, begin=nothing)
    return Task(recipe, Classes(groups), spec, recipe.training, Budget(), previous)


def _blank(count: int, preprocess: Preprocess) -> ImageSet:
    side = preprocess.resize
    pixels = torch.zeros(count, side, side, 3, dtype=torch.uint8)
    return ImageSet(pixels, torch.zeros(count, dtype=torch.int64))


def _blank_store(fields: tuple[Field, ...], sizes: Dimensions) -> Store:
    """Return kept memory of the right shapes, all zero: teachers may be made from it."""
    store = Store(fields)
    for field in fields:
        if field.name == IMAGES:
            continue
        for increment in field.increments(len(sizes.increments)):
            shape = sizes.shapes(field, increment)
            store.write(
                field.name,
                {name: _zeros(field, leaf) for name, leaf in shape.items()}
                if isinstance(shape, Mapping)
                else _zeros(field, shape),
                increment,
            )
    return store


def _zeros(field: Field, shape: tuple[int, ...]) -> NDArray[Any]:
    if field.dtype == "BOOL":
        return np.zeros(shape, bool)
    kind, bits = field.dtype[0].lower(), int(field.dtype[1:])  # such as U8, F32
    return np.zeros(shape, f"{kind}{bits // 8}")


def _of_phase(ctx: Context, phase: Phase, recipe: Recipe) -> dict[str, int]:
    for module in recipe.modules:
        if module.lifetime == phase.name:
            ctx.modules[module.name] = module.build(ctx)
    held = [t for m in ctx.modules.values() for t in m.state_dict().values()]
    found = {"modules": sum(t.nbytes for t in held), "gradients": 0, "optimiser": 0}
    for group in phase.trains:
        size = sum(p.nbytes for p in group_parameters(ctx, group).values())
        found["gradients"] += size
        found["optimiser"] += size * _buffers(phase.optims.get(group, phase.training.optim))
    for module in recipe.modules:
        if module.lifetime == phase.name:
            del ctx.modules[module.name]
    return found


def _buffers(optim: Optim) -> int:
    """Return how many values the optimiser keeps for each weight."""
    return 2 if optim.kind == "adam" else int(optim.momentum > 0)
