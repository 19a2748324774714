"""EWC: weights that the old classes need are held in place by their Fisher information.

Kept between increments: the diagonal of the Fisher information of the backbone; the anchor is
the current version itself. Under ``ce_scope=new`` the classifier's rows of the old classes stay as
they are.

The Fisher information is the mean of squared gradients of single images, in eval mode. Codes that
square the mean gradient of a batch underestimate it, up to as many times as there are images in
the batch: a strength of theirs stands for a smaller one here. Without ``clamp`` a penalty too
strong for the learning rate diverges: on the protocol ``quick`` 100 does, in the second increment.
The default strength is the best of 5, 50 and 5000 there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgecil.context import Context
from edgecil.memory.fields import Field
from edgecil.method import Recipe
from edgecil.options import option
from edgecil.parts.importance import CLAMP_HELP, fisher, keep, penalised_recipe

FISHER = Field("fisher", "backbone", "the Fisher information of every weight of the backbone")

PAPER = "Kirkpatrick et al.: Overcoming catastrophic forgetting in neural networks, PNAS 2017"


@dataclass(frozen=True)
class Options:
    """Options of ``ewc``."""

    strength: float = option(
        50.0, "lambda, weight of the penalty (eq. (3) has lambda / 2)", low=0.0
    )
    ce_scope: Literal["new", "seen"] = option(
        "new", "units of the softmax: the new classes, or all seen", choices=("new", "seen")
    )
    clamp: bool = option(True, CLAMP_HELP)


def remember(ctx: Context) -> None:
    """Keep the mean Fisher information over all classes so far, each class counting alike."""
    share = ctx.classes.old / ctx.classes.seen
    keep(ctx, FISHER, fisher(ctx, ctx.sets["new"]), share, 1 - share)


def recipe(options: Options) -> Recipe:
    """Return the recipe of EWC."""
    # Kirkpatrick et al. 2017, eq. (3).
    return penalised_recipe(
        "ewc", FISHER, remember, options.strength / 2, options.ce_scope, options.clamp
    )
