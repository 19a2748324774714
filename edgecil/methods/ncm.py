"""Nearest class mean on a frozen backbone: the baseline everybody should compare with.

The backbone learns once, at the base increment (or comes pretrained); later increments only
add the mean feature of each new class. Kept between increments: nothing, the means are the
classifier.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgecil.data.images import Batch
from edgecil.losses.classification import cross_entropy
from edgecil.method import (
    Context,
    Origin,
    Phase,
    Recipe,
    Setup,
    Term,
    Terms,
    ce_span,
    class_means,
)
from edgecil.nets.rules import NearestMeanRule, Rule


@dataclass(frozen=True)
class Options:
    """``ncm`` has no options."""


def step(ctx: Context, batch: Batch) -> Terms:
    """Return the cross-entropy of the base classes."""
    logits = ctx.net(batch.images).logits
    return {"classification": Term(cross_entropy(logits, batch.labels, ce_span(ctx, "seen")))}


def phases(setup: Setup) -> tuple[Phase, ...]:
    """Return one phase for a backbone that knows nothing yet, none for any other."""
    if setup.classes.old or setup.pretrained:
        return ()
    return (Phase("train", step, setup.training),)


def means(ctx: Context) -> Rule:
    """Return the old means, unchanged, and those of the new images."""
    new = class_means(ctx, ctx.sets["new"], ctx.classes.old)
    if isinstance(ctx.previous_rule, NearestMeanRule):
        new = torch.cat([ctx.previous_rule.means.to(new.device), new])
    return NearestMeanRule(new)


def has_means(origin: Origin) -> str | None:
    """Refuse a model without class means: those of old classes cannot be computed any more."""
    if origin.rule_kind == NearestMeanRule.kind:
        return None
    return "the means of the old classes are not kept and their images are gone"


def recipe(options: Options) -> Recipe:
    """Return the recipe of the nearest-class-mean classifier."""
    # The head learns at the base increment only: nobody may distil from it later.
    return Recipe("ncm", phases=phases, head_kind="unused", rule=means, adopt=has_means)
