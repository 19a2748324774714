"""What the sigmoid methods share: iCaRL's loss as terms, and asking teachers only once.

LwF-MC, iCaRL, LwM and M2KD have the same loss on the logits; they differ in the images, in the
teachers, and in what comes on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from edgecil.context import Context
from edgecil.data.images import Batch
from edgecil.errors import UsageError
from edgecil.losses.distillation import sigmoid_losses
from edgecil.memory.fields import Field
from edgecil.method import Origin, Recipe, Term, Terms, View, needs_head, one_phase, previous_net

Reduction = Literal["sum", "mean"]
REDUCTIONS = ("sum", "mean")
REDUCTION_HELP = "add the units up, or average them (iCaRL; wants lr 2.0)"


class Lesson(NamedTuple):
    """What the teachers say about the old classes: logits ``(N, K_o)``, and a side head's."""

    logits: Tensor
    auxiliary: Tensor | None = None


def unit_weight(reduction: Reduction, logits: Tensor) -> float:
    """Return what a sum over units is multiplied by; iCaRL's mean counts future units too."""
    return 1.0 if reduction == "sum" else 1 / logits.shape[1]


def _ask(ctx: Context, images: Tensor) -> Lesson:
    answer = ctx.teachers["previous"](images)
    return Lesson(answer.logits[:, : ctx.classes.old], getattr(answer, "auxiliary", None))


def _join(lessons: Iterable[Lesson]) -> dict[str, Tensor]:
    columns = zip(Lesson._fields, zip(*lessons, strict=True), strict=True)
    return {name: torch.cat(parts) for name, parts in columns if parts[0] is not None}


def _fill_table(ctx: Context) -> None:
    """Ask about every view of every image, in fixed batches: a resumed run fills in the same."""
    assert ctx.view is not None and ctx.view_count is not None
    lessons = []
    for mirrored in range(ctx.view_count):
        for images in ctx.loader(ctx.view):
            with ctx.autocast():
                lessons.append(_ask(ctx, images.flip(3) if mirrored else images))
    ctx.by_view |= _join(lessons)


@torch.no_grad()
def lesson(ctx: Context, batch: Batch) -> Lesson | None:
    """Return what the teacher ``previous`` says about a batch; None where there is none.

    A teacher in eval mode is a function of the image. Where augmentation makes at most two
    views of each, all its answers are computed once and looked up from then on, so that a step
    costs the same however many teachers there are. Elsewhere a batch is asked about once,
    however many terms want to know.
    """
    if "previous" not in ctx.teachers:
        return None
    if ctx.view_count is not None and ctx.view is not None:
        if "logits" not in ctx.by_view:
            _fill_table(ctx)
        rows = batch.views[:, 2] * len(ctx.view) + batch.index
        return Lesson(**{n: table.index_select(0, rows) for n, table in ctx.by_view.items()})
    asked: tuple[Batch, Lesson] | None = ctx.scratch.get("lesson")
    if asked is None or asked[0] is not batch:
        asked = ctx.scratch["lesson"] = batch, _ask(ctx, batch.images)
    return asked[1]


def sigmoid_terms(
    logits: Tensor, batch: Batch, ctx: Context, teacher: Tensor | None, reduction: Reduction
) -> dict[str, Term]:
    """Return iCaRL's loss as terms: ``classification`` and, with a teacher, ``distillation``."""
    classes = ctx.classes
    losses = sigmoid_losses(logits, batch.labels, classes.old, teacher, classes.updated)
    weight = unit_weight(reduction, logits)
    return {name: Term(value, weight) for name, value in losses.items()}


def sigmoid_step(reduction: Reduction, ctx: Context, batch: Batch) -> Terms:
    """Return iCaRL's loss on a batch.

    Images of old classes are taught by the teacher's outputs, not by their labels, unless there
    are new images of the class: then its own unit learns the label.
    """
    taught = lesson(ctx, batch)
    logits = ctx.net(batch.images).logits
    return sigmoid_terms(logits, batch, ctx, taught and taught.logits, reduction)


def sigmoid_base(reduction: Reduction) -> str:
    """Return :attr:`Recipe.base` of a method that begins with one sigmoid per class."""
    return f"sigmoid cross-entropy, {reduction}"


def sigmoid_recipe(name: str, reduction: Reduction, view: View = "new", **slots: Any) -> Recipe:
    """Return a recipe with iCaRL's loss on the images of ``view``, taught by the last network."""
    return Recipe(
        name,
        phases=one_phase(partial(sigmoid_step, reduction), view),
        head_kind="sigmoid",
        teachers=previous_net,
        asks_lessons=True,
        adopt=needs_head("sigmoid"),
        base=sigmoid_base(reduction),
        **slots,
    )


def check_host(host: Recipe, what: str) -> None:
    """Do nothing for a host whose teachers a plug-in may replace.

    Raises:
        UsageError: the host has no such teachers, or they were replaced before.
    """
    if not host.asks_lessons:
        raise UsageError(
            f"{what} cannot be laid over {host.name}",
            hint="hosts are lwf-mc and icarl; m2kd has all parts at once, see its options",
        )


def continues(host: Recipe, fields: tuple[Field, ...]) -> Callable[[Origin], str | None]:
    """Return an ``adopt`` that wants the host's origin, and ``fields`` kept as declared."""

    def adopt(origin: Origin) -> str | None:
        reason = host.adopt(origin)
        if reason is not None:
            return reason
        kept = {f.name: f for f in origin.kept}
        # After the base, a field without its newest increment holds nothing yet.
        for wanted in (f for f in fields if f.newest or f.name in kept):
            if wanted.name not in kept:
                return f"what teaches it was not kept: {wanted.name}"
            if replace(kept[wanted.name], why="") != replace(wanted, why=""):
                return f"{wanted.name} were kept with other settings, such as pruning or skip"
        return None

    return adopt
