"""MAS: weights that the old outputs are sensitive to are held in place.

Kept between increments: one importance per weight of the backbone, summed over increments; the
anchor is the current version itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from edgecil.data.images import Batch
from edgecil.importance import FIELD, SPRINGS, keep, needs_importance, pull, sensitivity
from edgecil.losses.classification import cross_entropy
from edgecil.method import Context, Recipe, Term, Terms, ce_span, one_phase, previous_net
from edgecil.options import option


@dataclass(frozen=True)
class Options:
    """Options of ``mas``."""

    strength: float = option(1.0, "lambda, the stiffness (eq. (4))", low=0.0)
    ce_scope: Literal["new", "seen"] = option(
        "new", "units of the softmax: the new classes, or all seen", choices=("new", "seen")
    )


def step(options: Options, ctx: Context, batch: Batch) -> Terms:
    """Return the cross-entropy on new images and the pull towards the old weights."""
    logits = ctx.net(batch.images).logits
    span = ce_span(ctx, options.ce_scope)
    terms = {"classification": Term(cross_entropy(logits, batch.labels, span))}
    if ctx.classes.old:
        # Aljundi et al. 2018, eq. (4).
        terms["sensitivity"] = Term(pull(ctx), options.strength, to=("backbone",))
    return terms


def remember(ctx: Context) -> None:
    """Keep the sum of the importance over all increments."""
    keep(ctx, sensitivity(ctx, ctx.sets["new"]), 1.0, 1.0)


def recipe(options: Options) -> Recipe:
    """Return the recipe of MAS."""
    return Recipe(
        "mas",
        phases=one_phase(partial(step, options)),
        fields=(FIELD,),
        modules=(SPRINGS,),
        teachers=previous_net,
        end=remember,
        adopt=needs_importance,
    )
