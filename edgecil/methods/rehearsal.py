"""Replay stored exemplars beside the new images, with plain cross-entropy.

Kept between increments: exemplars, chosen at random, and their labels.
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
from edgecil.parts.views import half_old
from edgecil.rankings import random_ranking
from edgecil.settings import ABD_TRAINING


@dataclass(frozen=True)
class Options:
    """Options of ``rehearsal``."""

    oversample: bool = option(
        True, "repeat exemplars until they are as many as the new images (ABD's baseline)"
    )


def step(ctx: Context, batch: Batch) -> Terms:
    """Return the cross-entropy over all seen classes."""
    logits = ctx.net(batch.images).logits
    return {"classification": Term(cross_entropy(logits, batch.labels, ce_span(ctx, "seen")))}


def recipe(options: Options) -> Recipe:
    """Return the recipe of naive rehearsal."""
    return Recipe(
        "rehearsal",
        phases=one_phase(step, view=half_old if options.oversample else "new+kept"),
        fields=exemplar_fields(),
        selection=Selection(random_ranking),
        updates_known=True,
        base=SOFTMAX_BASE,
    )


PRESETS: Mapping[str, Preset] = {
    # ABD's naive rehearsal, without its shrinking coreset.
    "abd": Preset(ABD_TRAINING, arch="resnet32"),
}
