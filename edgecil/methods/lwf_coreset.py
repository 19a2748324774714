"""LwF beside replayed exemplars: softened old outputs on new images and exemplars alike.

Kept between increments: exemplars and their labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from edgecil.context import Context
from edgecil.data.images import Batch
from edgecil.memory.fields import exemplar_fields
from edgecil.method import (
    SOFTMAX_BASE,
    Preset,
    Recipe,
    Selection,
    Terms,
    needs_head,
    one_phase,
    previous_net,
)
from edgecil.options import option
from edgecil.parts.softened import softened_terms
from edgecil.parts.views import half_old
from edgecil.rankings import herding, random_ranking
from edgecil.settings import ABD_TRAINING


@dataclass(frozen=True)
class Options:
    """Options of ``lwf-coreset``."""

    temperature: float = option(2.0, "T of the softened probabilities", low=0.1, high=100.0)
    kd_weight: float = option(1.0, "weight of the distillation", low=0.0)
    ranking: Literal["herding", "random"] = option(
        "herding", "which exemplars are kept (ABD: random)", choices=("herding", "random")
    )
    oversample: bool = option(
        True, "repeat exemplars until they are as many as the new images (ABD's baseline)"
    )


def step(options: Options, ctx: Context, batch: Batch) -> Terms:
    """Return the cross-entropy over all seen classes and KD_T over the old units."""
    return softened_terms(ctx, batch, "seen", options.temperature, 1.0, options.kd_weight)


def recipe(options: Options) -> Recipe:
    """Return the recipe of LwF with a coreset."""
    return Recipe(
        "lwf-coreset",
        phases=one_phase(partial(step, options), half_old if options.oversample else "new+kept"),
        teachers=previous_net,
        fields=exemplar_fields(),
        selection=Selection(herding if options.ranking == "herding" else random_ranking),
        temperature=options.temperature,
        adopt=needs_head("softmax"),
        updates_known=True,
        base=SOFTMAX_BASE,
    )


PRESETS: Mapping[str, Preset] = {
    # ABD's baseline, without its shrinking coreset.
    "abd": Preset(ABD_TRAINING, options={"ranking": "random"}, arch="resnet32"),
}
