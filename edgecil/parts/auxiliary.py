"""Auxiliary distillation: a second head on an early stage teaches it too (M2KD section 3.2).

The head is global average pooling of the second stage and one linear layer, the structure of
the classifier itself; the paper gives none. It is not part of the classifier.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from edgecil.context import Context, Setup
from edgecil.data.images import Batch
from edgecil.losses.distillation import auxiliary_losses
from edgecil.memory.fields import Field
from edgecil.method import ModuleSpec, Phase, Recipe, Step, Term, Terms
from edgecil.nets.build import stage_channels
from edgecil.nets.heads import LinearHead
from edgecil.nets.net import pooled
from edgecil.nets.taps import forward_outputs
from edgecil.parts.lessons import Reduction, check_host, continues, lesson, unit_weight
from edgecil.parts.snapshots import STAGE, Snapshot, check_rows

NAME = "auxiliary"
PARTS = ("weight", "bias")
FIELDS = (
    Field("auxiliary.weight", ("C", "D_2"), "auxiliary head, which the classifier lacks"),
    Field("auxiliary.bias", ("C",), "auxiliary head, which the classifier lacks"),
)


@dataclass(frozen=True)
class Auxiliary:
    """Weights of the auxiliary loss L_AD."""

    weight: float
    """lambda of eq. (4)."""
    alpha: float
    """Weight of the ground truth in eq. (3)."""
    reduction: Reduction


def _head(prefix: str, ctx: Context) -> LinearHead:
    """Return the head as it was kept, with new rows for new classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ctx.stream(NAME).initial_seed())
        spec = ctx.net.spec
        head = LinearHead(stage_channels(spec)[STAGE], ctx.classes.seen, spec.width)
    with torch.no_grad():
        for part in PARTS if ctx.classes.old else ():
            kept = torch.from_numpy(ctx.kept.read(f"{prefix}{NAME}.{part}"))
            getattr(head, part)[: ctx.classes.old].copy_(kept)
    return head


def _step(host: Step, settings: Auxiliary, ctx: Context, batch: Batch) -> Terms:
    """Return the host's terms and lambda L_AD, from one forward pass of the student."""
    with forward_outputs(ctx.net) as passes:
        terms = host(ctx, batch)
    (outputs,) = passes
    logits = ctx.modules[NAME](pooled(outputs.stages[STAGE]))
    taught = lesson(ctx, batch)
    teacher = taught and taught.auxiliary
    losses = auxiliary_losses(logits, batch.labels, ctx.classes.old, teacher)
    unit = settings.weight * unit_weight(settings.reduction, logits)
    weights = {"auxiliary classification": unit * settings.alpha, "auxiliary distillation": unit}
    to = ("backbone", NAME)
    return {**terms, **{name: Term(value, weights[name], to) for name, value in losses.items()}}


def add_auxiliary(host: Recipe, settings: Auxiliary, prefix: str = "") -> Recipe:
    """Return ``host`` with an auxiliary head, begun from fields whose names start with ``prefix``.

    Its teachers must answer for the auxiliary head as well.
    """

    def phases(setup: Setup) -> tuple[Phase, ...]:
        return tuple(
            replace(p, step=partial(_step, p.step, settings), trains=(*p.trains, NAME))
            for p in host.phases(setup)
        )

    modules = (*host.modules, ModuleSpec(NAME, partial(_head, prefix)))
    return replace(host, phases=phases, modules=modules)


def keep_auxiliary(host: Recipe) -> Recipe:
    """Return ``host`` with an auxiliary head of the last network as teacher, kept as a whole.

    Raises:
        UsageError: the host asks its teacher for more than logits.
    """
    check_host(host, "auxiliary distillation")

    def begin(ctx: Context) -> None:
        check_rows(ctx, "auxiliary distillation")
        host.begin(ctx)

    def teachers(ctx: Context) -> dict[str, nn.Module]:
        if ctx.previous is None:
            return {}
        head, old = ctx.previous.head, ctx.classes.old
        rows = {f"head.{part}": getattr(head, part)[:old] for part in PARTS}
        for part in PARTS:
            kept = ctx.kept.read(f"{NAME}.{part}")
            rows[f"{NAME}.{part}"] = torch.from_numpy(kept).to(ctx.device)
        return {"previous": Snapshot(ctx.previous, rows)}

    def end(ctx: Context) -> None:
        host.end(ctx)
        for part in PARTS:
            values = getattr(ctx.modules[NAME], part)[: ctx.classes.seen]
            ctx.keeps.write(f"{NAME}.{part}", values.detach().cpu().numpy())

    return replace(
        host, fields=(*host.fields, *FIELDS), teachers=teachers, asks_lessons=False,
        begin=begin, end=end,
        adopt=continues(host, FIELDS),
    )  # fmt: skip
