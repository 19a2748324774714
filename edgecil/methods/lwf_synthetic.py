"""LwF that distils old outputs on synthetic images beside the new ones.

A baseline of ABD (Smith et al. 2021, Table 1). Kept between increments: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from edgecil.context import Context, ce_span
from edgecil.data.images import Batch
from edgecil.losses.classification import cross_entropy
from edgecil.losses.distillation import softmax_distillation
from edgecil.method import Preset, Recipe, Term, Terms
from edgecil.options import option
from edgecil.parts.dreaming import RELEASED, DreamOptions, dream_recipe, with_drawn
from edgecil.settings import ABD_AUGMENT, ABD_TRAINING


@dataclass(frozen=True)
class Options(DreamOptions):
    """Options of ``lwf-synthetic``."""

    ce_scope: Literal["new", "seen"] = option(
        "seen", "units of the softmax: the new classes, or all seen", choices=("new", "seen")
    )
    temperature: float = option(2.0, "T of the softened probabilities", low=0.1, high=100.0)
    kd_weight: float = option(1.0, "weight of the distillation", low=0.0)


def step(options: Options, ctx: Context, batch: Batch) -> Terms:
    """Return CE on new images and KD_T over the old units on new and synthetic ones."""
    span = ce_span(ctx, options.ce_scope)
    if not ctx.teachers:
        logits = ctx.net(batch.images).logits
        return {"classification": Term(cross_entropy(logits, batch.labels, span))}
    real, old = len(batch.labels), ctx.classes.old
    images = with_drawn(ctx, batch.images)
    taught = ctx.teach("previous", images).logits[:, :old]
    logits = ctx.net(images).logits
    distilled = softmax_distillation(taught, logits[:, :old], options.temperature)
    return {
        "classification": Term(cross_entropy(logits[:real], batch.labels, span)),
        "distillation": Term(distilled, options.kd_weight),
    }


def recipe(options: Options) -> Recipe:
    """Return the recipe of LwF with synthetic images."""
    return dream_recipe("lwf-synthetic", options, partial(step, options))


PRESETS: Mapping[str, Preset] = {
    "abd": Preset(ABD_TRAINING, arch="resnet32"),
    # The released scripts weigh the distillation by 0.1.
    "abd-released": Preset(
        ABD_TRAINING,
        options={**RELEASED, "kd_weight": 0.1},
        arch="resnet32",
        augment=ABD_AUGMENT,
    ),
}  # fmt: skip
