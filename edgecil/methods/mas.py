"""MAS: weights that the old outputs are sensitive to are held in place.

Kept between increments: one importance per weight of the backbone, summed over increments; the
anchor is the current version itself. Under ``ce_scope=new`` the classifier's rows of the old
classes stay as they are.

Without ``clamp`` a penalty too strong for the learning rate diverges; with it the most important
weights are held less than the paper does. The default strength is the best of 0.002, 0.02 and 1,
the paper's, on the protocol ``quick``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgecil.context import Context
from edgecil.method import Recipe
from edgecil.options import option
from edgecil.parts.importance import CLAMP_HELP, SENSITIVITY, keep, penalised_recipe, sensitivity

PAPER = (
    "Aljundi, Babiloni, Elhoseiny, Rohrbach and Tuytelaars: Memory Aware Synapses: "
    "Learning what (not) to forget, ECCV 2018"
)


@dataclass(frozen=True)
class Options:
    """Options of ``mas``."""

    strength: float = option(0.02, "lambda, weight of the penalty (eq. (4))", low=0.0)
    ce_scope: Literal["new", "seen"] = option(
        "new", "units of the softmax: the new classes, or all seen", choices=("new", "seen")
    )
    clamp: bool = option(True, CLAMP_HELP)


def remember(ctx: Context) -> None:
    """Keep the sum of the importance over all increments."""
    keep(ctx, SENSITIVITY, sensitivity(ctx, ctx.sets["new"]), 1.0, 1.0)


def recipe(options: Options) -> Recipe:
    """Return the recipe of MAS."""
    # Aljundi et al. 2018, eq. (4).
    return penalised_recipe(
        "mas", SENSITIVITY, remember, options.strength, options.ce_scope, options.clamp
    )
