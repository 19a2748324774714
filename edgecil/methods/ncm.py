"""Nearest class mean on a frozen backbone: the baseline everybody should compare with.

The backbone learns once, at the base increment (or comes pretrained); later increments only
add the mean feature of each new class. New images of an old class move its mean half of the way
to theirs. Kept between increments: nothing, the means are the classifier.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from edgecil.context import Context, Setup, ce_span, class_means
from edgecil.data.images import Batch
from edgecil.losses.classification import cross_entropy
from edgecil.method import SOFTMAX_BASE, Origin, Phase, Recipe, Term, Terms
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
    """Return the old means and those of the new images.

    Old means are unchanged but for classes with new images. How many images a mean came from is
    not kept, so that both halves of such a class count alike.
    """
    found = class_means(ctx, ctx.sets["new"], 0)
    if not isinstance(ctx.previous_rule, NearestMeanRule):
        return NearestMeanRule(found)
    old = ctx.previous_rule.means.to(found.device).clone()
    rows = list(ctx.classes.updated)
    old[rows] = F.normalize(old[rows] + found[rows])
    return NearestMeanRule(torch.cat([old, found[ctx.classes.old :]]))


def has_means(origin: Origin) -> str | None:
    """Refuse a model without class means: those of old classes cannot be computed any more."""
    if origin.rule_kind == NearestMeanRule.kind:
        return None
    return "the means of the old classes are not kept and their images are gone"


def recipe(options: Options) -> Recipe:
    """Return the recipe of the nearest-class-mean classifier."""
    # The head learns at the base increment only: nobody may distil from it later.
    return Recipe(
        "ncm",
        phases=phases,
        head_kind="unused",
        rule=means,
        adopt=has_means,
        base=SOFTMAX_BASE,
        updates_known=True,
    )
