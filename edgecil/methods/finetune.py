"""Train on the new images alone and forget the old classes: the lower bound.

Kept between increments: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from edgecil.context import Context, ce_span
from edgecil.data.images import Batch
from edgecil.losses.classification import cross_entropy
from edgecil.method import SOFTMAX_BASE, Recipe, Term, Terms, one_phase
from edgecil.options import option


@dataclass(frozen=True)
class Options:
    """Options of ``finetune``."""

    ce_scope: Literal["seen", "new"] = option(
        "seen", "units of the softmax: all seen classes, or the new ones", choices=("seen", "new")
    )


def step(options: Options, ctx: Context, batch: Batch) -> Terms:
    """Return the cross-entropy on new images."""
    span = ce_span(ctx, options.ce_scope)
    return {"classification": Term(cross_entropy(ctx.net(batch.images).logits, batch.labels, span))}


def recipe(options: Options) -> Recipe:
    """Return the recipe of plain finetuning."""
    return Recipe(
        "finetune", phases=one_phase(partial(step, options)), base=SOFTMAX_BASE, updates_known=True
    )
