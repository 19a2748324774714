"""What an increment will cost, before it is trained: bytes kept, training memory, time, disk."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from edgecil.engine import increment
from edgecil.engine.compute import Compute
from edgecil.engine.loop import PhaseRun, Session
from edgecil.engine.selection import dimensions, stored_image, stored_side
from edgecil.errors import BudgetError
from edgecil.exemplars import least_bytes
from edgecil.learning.prepare import Job
from edgecil.memory.budget import Budget, count_for
from edgecil.memory.codecs import item_codec
from edgecil.memory.fields import IMAGES
from edgecil.memory.plan import MemoryPlan, plan
from edgecil.memory.store import Store
from edgecil.method import Recipe
from edgecil.nets.net import NetSpec
from edgecil.units import format_bytes

TRIAL_STEPS = 3
LONG_STEP = 2.0
"""Seconds from which on a step is not timed again, in its phase nor in others of its kind: a dry
run is to be quick."""


@dataclass(frozen=True)
class LearnPlan:
    """The answer of ``learn --dry-run``; bytes and seconds."""

    method: str
    classes_new: tuple[str, ...]
    classes_updated: tuple[str, ...]
    """Known classes of which there are new images."""
    classes_old: int
    arch: str
    image_size: int
    images: int
    kept_images: int
    image_bytes: int
    """Bytes of the decoded new images, wherever they are."""
    images_on_disk: bool
    """Whether they are streamed from a temporary file."""
    phases: tuple[Mapping[str, Any], ...]
    seconds: float
    """Estimated from a few steps timed on this machine."""
    kept: Mapping[str, Any]
    training_bytes: Mapping[str, int]
    disk_bytes: int
    device: str
    precision: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object."""
        return asdict(self)


def kept_plan(
    recipe: Recipe,
    spec: NetSpec,
    groups: tuple[int, ...],
    side: int,
    budget: Budget,
    sizes: Sequence[int],
    size: int | None = None,
) -> MemoryPlan:
    """Return the kept memory of a method after the increments ``groups``.

    ``side`` is the edge of a stored image in pixels, ``size`` that of the network's input where
    it is another, ``sizes`` the number of images of each class. Exact for codecs of fixed size,
    else an upper bound.

    Raises:
        BudgetError: not even the least that the method keeps fits the budget.
    """

    def at(per_class: int, bound: Literal["bound", "least"] = "bound") -> MemoryPlan:
        count = sum(min(per_class, n) for n in sizes) if recipe.selection else 0
        return plan(recipe.fields, dimensions(spec, groups, side, count, size), size=bound)

    if budget.bytes is None:
        lengths = [range(n) for n in sizes] if recipe.selection else []
        return at(count_for(budget, lengths, lambda counts, item_bytes: 0))
    least = at(1, "least")
    if least.kept_bytes > budget.bytes:
        raise BudgetError(
            f"{recipe.name} keeps at least {format_bytes(least.kept_bytes)} for {sum(groups)} "
            f"classes, the budget is {format_bytes(budget.bytes)}",
            hint="raise --memory-budget, or take a method that keeps nothing: lwm, lwf-mc",
        )
    return _filling(budget.bytes, at, max(sizes, default=0))


def _filling(limit: int, at: Callable[[int], MemoryPlan], most: int) -> MemoryPlan:
    """Return the plan with the most exemplars per class, up to ``most``, within ``limit`` bytes."""
    fitting = bisect.bisect_right(range(1, most + 1), limit, key=lambda n: at(n).kept_bytes)
    found = at(max(1, fitting))
    if found.exact or fitting >= most:
        return found
    # Images may turn out smaller than the bound, and more of them fit: up to the last byte.
    rest = limit - found.kept_bytes
    rows = (replace(r, bytes=r.bytes + rest) if r.name == IMAGES else r for r in found.rows)
    return replace(found, rows=tuple(rows))


def check_budget(job: Job) -> MemoryPlan:
    """Return the planned kept memory of a job, refusing what cannot fit.

    Raises:
        BudgetError: not even the least that the method keeps fits the budget.
    """
    task, preprocess = job.task, job.preprocess
    _check_first_exemplars(job)
    return kept_plan(
        task.recipe, task.spec, task.classes.groups, preprocess.resize, task.budget,
        job.class_sizes, preprocess.size,
    )  # fmt: skip


def _check_first_exemplars(job: Job) -> None:
    """Refuse a budget in bytes that one exemplar of each class exceeds, whichever it will be.

    An increment for which there is room encodes an image or a few of each class. One that is
    refused has encoded all, which is a small part of an epoch.
    """
    task, limit = job.task, job.task.budget.bytes
    fields, selection = task.recipe.fields, task.recipe.selection
    images = task.recipe.stored_images
    # Images that are changed before they are stored may take fewer bytes than they do now.
    changes = selection is not None and selection.candidates is not None
    if limit is None or images is None or item_codec(images.codec).exact or changes:
        return
    new, resize = job.images.new, job.preprocess.resize
    side, labels = stored_side(images, resize), new.labels.tolist()
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    codec = item_codec(images.codec)
    needed = least_bytes(
        task.previous.kept if task.previous else Store(()), fields, (side, side), rows,
        lambda row: codec.encode_item(stored_image(new.pixels, row, side)), limit,
        dimensions(task.spec, task.classes.groups, resize, size=job.preprocess.size),
    )  # fmt: skip
    if needed > limit:
        raise BudgetError(
            f"{task.recipe.name} keeps at least {format_bytes(needed)} for {task.classes.seen} "
            f"classes, the budget is {format_bytes(limit)}",
            hint=f"--memory-budget {needed} or more, a smaller --codec or --exemplar-size, or a "
            "method that keeps nothing: lwm, lwf-mc",
        )


def make_plan(job: Job, compute: Compute) -> LearnPlan:
    """Return the plan of a job, after timing a few real steps of each of its phases."""
    kept = check_budget(job)
    session = Session(compute, job.preprocess, job.augment, job.request.seed)
    ctx, phases = increment.begin(job.task, job.sets, session)
    rows: list[dict[str, Any]] = []
    seconds, rates = 0.0, dict[Any, float]()
    for run in increment.rehearse(ctx, job.task, phases, session):
        epochs = run.steps // run.per_epoch
        rows.append(
            {"name": run.phase.name, "epochs": epochs, "steps": run.steps, "images": run.images}
        )
        kind = getattr(run.phase.step, "func", run.phase.step)
        if rates.get(kind, 0.0) < LONG_STEP:
            with run.room():
                rates[kind] = _seconds_per_step(run)
        seconds += run.steps * rates[kind]
    weights = sum(v.nbytes for v in ctx.net.state_dict().values())
    return LearnPlan(
        job.recipe.name, job.images.names,
        tuple(job.names[row] for row in job.task.classes.updated),
        job.task.classes.old, job.task.spec.arch,
        job.preprocess.size, len(job.images.new), len(job.kept),
        job.images.new.pixels.nbytes, job.images.new.on_disk, tuple(rows),
        seconds,
        {"bytes": kept.kept_bytes, "basis": "plan" if kept.exact else "bound",
         "fields": kept.fields()},
        dict(session.largest), weights + kept.kept_bytes, compute.device, compute.precision,
        tuple(job.notes),
    )  # fmt: skip


def _seconds_per_step(run: PhaseRun) -> float:
    if not run.steps:
        return 0.0

    def timed(steps: int) -> float:
        start = time.perf_counter()
        for step in range(steps):
            run.step(step % run.steps)
        if run.ctx.device.type == "cuda":
            torch.cuda.synchronize(run.ctx.device)
        return (time.perf_counter() - start) / steps

    first = timed(1)  # it allocates; where it takes long this hardly matters
    return first if first > LONG_STEP else timed(TRIAL_STEPS)
