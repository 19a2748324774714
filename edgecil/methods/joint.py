"""Train on all images seen so far: the upper bound, which needs the old folders.

Kept between increments: the path and SHA-256 of every training image. The images themselves
stay where they are and must still be there, unchanged, at the next increment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgecil.context import Context, ce_span
from edgecil.data.images import Batch
from edgecil.losses.classification import cross_entropy
from edgecil.memory.fields import exemplar_fields
from edgecil.method import SOFTMAX_BASE, Preset, Recipe, Selection, Term, Terms, one_phase
from edgecil.options import option
from edgecil.rankings import keep_all
from edgecil.settings import ABD_TRAINING


@dataclass(frozen=True)
class Options:
    """Options of ``joint``."""

    scratch: bool = option(False, "start each increment from random weights (Omega's oracle)")


def step(ctx: Context, batch: Batch) -> Terms:
    """Return the cross-entropy over all seen classes."""
    logits = ctx.net(batch.images).logits
    return {"classification": Term(cross_entropy(logits, batch.labels, ce_span(ctx, "seen")))}


def recipe(options: Options) -> Recipe:
    """Return the recipe of joint training."""
    return Recipe(
        "joint",
        phases=one_phase(step, view="new+kept"),
        fields=exemplar_fields("reference"),
        selection=Selection(keep_all, everything=True),
        fresh_start=options.scratch,
        updates_known=True,
        base=SOFTMAX_BASE,
    )


PRESETS: Mapping[str, Preset] = {
    # ABD's upper bound, the oracle of its Omega: a new network for every increment.
    "abd": Preset(ABD_TRAINING, options={"scratch": True}, arch="resnet32"),
}
