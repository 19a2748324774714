"""MAS: weights that the old outputs are sensitive to are held in place.

Kept between increments: one importance per weight of the backbone, summed over increments; the
anchor is the current version itself.

Without ``steady`` a penalty too strong for the learning rate diverges; with it the most important
weights are held less than the paper does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from edgecil.context import Context
from edgecil.method import SOFTMAX_BASE, Recipe, one_phase, previous_net
from edgecil.options import option
from edgecil.parts.importance import (
    FIELD,
    IF_DIVERGING,
    SPRINGS,
    STEADY_HELP,
    keep,
    needs_importance,
    pulled_step,
    sensitivity,
)

PAPER = (
    "Aljundi, Babiloni, Elhoseiny, Rohrbach and Tuytelaars: Memory Aware Synapses: "
    "Learning what (not) to forget, ECCV 2018"
)


@dataclass(frozen=True)
class Options:
    """Options of ``mas``."""

    strength: float = option(1.0, "lambda, the stiffness (eq. (4))", low=0.0)
    ce_scope: Literal["new", "seen"] = option(
        "new", "units of the softmax: the new classes, or all seen", choices=("new", "seen")
    )
    steady: bool = option(True, STEADY_HELP)


def remember(ctx: Context) -> None:
    """Keep the sum of the importance over all increments."""
    keep(ctx, sensitivity(ctx, ctx.sets["new"]), 1.0, 1.0)


def recipe(options: Options) -> Recipe:
    """Return the recipe of MAS."""
    return Recipe(
        "mas",
        # Aljundi et al. 2018, eq. (4).
        phases=one_phase(partial(pulled_step, options.strength, options.ce_scope, options.steady)),
        fields=(FIELD,),
        modules=(SPRINGS,),
        teachers=previous_net,
        end=remember,
        adopt=needs_importance,
        if_diverging=IF_DIVERGING,
        base=SOFTMAX_BASE,
    )
