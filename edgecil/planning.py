"""What an increment will cost, before it is trained: bytes kept, training memory, time, disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from edgecil.engine import increment
from edgecil.engine.compute import Compute
from edgecil.engine.increment import Task
from edgecil.engine.loop import PhaseRun, Session
from edgecil.engine.selection import dimensions
from edgecil.errors import BudgetError
from edgecil.memory.budget import Budget
from edgecil.memory.plan import MemoryPlan, plan
from edgecil.method import Recipe
from edgecil.nets.net import NetSpec
from edgecil.prepare import Job
from edgecil.units import format_bytes

TRIAL_STEPS = 3


@dataclass(frozen=True)
class LearnPlan:
    """The answer of ``learn --dry-run``; bytes and seconds."""

    method: str
    classes_new: tuple[str, ...]
    classes_old: int
    arch: str
    image_size: int
    images: int
    kept_images: int
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


def exemplar_count(budget: Budget, classes: int, images: int) -> int | None:
    """Return how many exemplars a budget in images allows; None for one in bytes."""
    if budget.bytes is not None:
        return None
    if budget.per_class is not None:
        return min(images, budget.per_class * classes)
    return images if budget.total is None else min(images, budget.total // classes * classes)


def kept_plan(
    recipe: Recipe, spec: NetSpec, groups: tuple[int, ...], side: int, budget: Budget, images: int
) -> MemoryPlan:
    """Return the kept memory of a method after the increments ``groups``.

    ``side`` is the edge of a stored image in pixels, ``images`` how many were seen in all.

    Raises:
        BudgetError: not even the least that the method keeps fits a budget in bytes.
    """
    classes = sum(groups)
    count = exemplar_count(budget, classes, images) if recipe.selection else 0

    def at(exemplars: int, size: Any) -> MemoryPlan:
        return plan(recipe.fields, dimensions(spec, groups, side, exemplars), size=size)

    if budget.bytes is None:
        return at(count or 0, "bound")
    least = at(classes if recipe.selection else 0, "least")
    if least.kept_bytes > budget.bytes:
        raise BudgetError(
            f"{recipe.name} keeps at least {format_bytes(least.kept_bytes)} for {classes} "
            f"classes, the budget is {format_bytes(budget.bytes)}",
            hint="raise --memory-budget, or take a method that keeps nothing: lwm, lwf-mc",
        )
    return least


def check_budget(task: Task, side: int, images: int) -> MemoryPlan:
    """Return the planned kept memory of a task, refusing what cannot fit.

    Raises:
        BudgetError: not even the least that the method keeps fits a budget in bytes.
    """
    return kept_plan(task.recipe, task.spec, task.classes.groups, side, task.budget, images)


def make_plan(job: Job, compute: Compute) -> LearnPlan:
    """Return the plan of a job, after timing a few real steps of its first phase."""
    session = Session(compute, job.preprocess, job.augment, job.request.seed)
    sets = {"new": job.images.new, "kept": job.kept}
    ctx, phases = increment.begin(job.task, sets, session)
    rows: list[dict[str, Any]] = []
    rate = 0.0
    for number, phase in enumerate(phases):
        run = PhaseRun(ctx, phase, number, session)
        epochs = run.steps // run.per_epoch
        rows.append(
            {"name": phase.name, "epochs": epochs, "steps": run.steps, "images": run.images}
        )
        if number == 0:
            rate = _seconds_per_step(run)
            increment.measure(ctx, run, session)
    seen = len(job.images.new) + len(job.kept)
    kept = check_budget(job.task, job.preprocess.resize, seen)
    weights = sum(v.nbytes for v in ctx.net.state_dict().values())
    steps = sum(int(row["steps"]) for row in rows)
    return LearnPlan(
        job.recipe.name, job.images.names, job.task.classes.old, job.task.spec.arch,
        job.preprocess.size, len(job.images.new), len(job.kept), tuple(rows),
        rate * steps,
        {"bytes": kept.kept_bytes, "basis": "plan" if kept.exact else "bound",
         "fields": kept.fields()},
        dict(session.largest), weights + kept.kept_bytes, compute.device, compute.precision,
        tuple(job.notes),
    )  # fmt: skip


def _seconds_per_step(run: PhaseRun) -> float:
    run.step(0)  # the first step allocates
    start = time.perf_counter()
    for step in range(TRIAL_STEPS):
        run.step(step % run.steps)
    if run.ctx.device.type == "cuda":
        torch.cuda.synchronize(run.ctx.device)
    return (time.perf_counter() - start) / TRIAL_STEPS
