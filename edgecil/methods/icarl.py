"""iCaRL: herded exemplars, sigmoid distillation, and classification by the nearest class mean.

Kept between increments: exemplars in herding order, best first. The class means are part of
the classifier: they are computed from the exemplars as they decode from storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from edgecil.data.images import Batch
from edgecil.exemplars import herding
from edgecil.losses.distillation import sigmoid_losses
from edgecil.memory.fields import exemplar_fields
from edgecil.method import (
    Context,
    Preset,
    Recipe,
    Selection,
    Term,
    Terms,
    argmax_rule,
    class_means,
    needs_head,
    one_phase,
    previous_net,
)
from edgecil.nets.rules import NearestMeanRule, Rule
from edgecil.options import option
from edgecil.settings import ICARL_TRAINING, SUMMED_TRAINING


@dataclass(frozen=True)
class Options:
    """Options of ``icarl``."""

    reduction: Literal["sum", "mean"] = option(
        "sum", "add the units up, or average them (paper: lr 2.0)", choices=("sum", "mean")
    )
    rule: Literal["nearest-mean", "argmax"] = option(
        "nearest-mean", "classify by class means or by the head (hybrid 1)",
        choices=("nearest-mean", "argmax"),
    )  # fmt: skip


def step(options: Options, ctx: Context, batch: Batch) -> Terms:
    """Return iCaRL's loss on new images and exemplars.

    Exemplars of old classes are taught by the teacher's outputs, not by their labels.
    """
    teacher = ctx.teach("previous", batch.images).logits if ctx.teachers else None
    logits = ctx.net(batch.images).logits
    weight = 1.0 if options.reduction == "sum" else 1 / logits.shape[1]
    losses = sigmoid_losses(logits, batch.labels, ctx.classes.old, teacher)
    return {name: Term(value, weight) for name, value in losses.items()}


def nearest_mean(ctx: Context) -> Rule:
    """Return the nearest-mean rule of the stored exemplars and their mirror images."""
    return NearestMeanRule(class_means(ctx, ctx.sets["exemplars"], 0, mirror=True))


def recipe(options: Options) -> Recipe:
    """Return the recipe of iCaRL."""
    return Recipe(
        "icarl",
        phases=one_phase(partial(step, options), view="new+kept"),
        head_kind="sigmoid",
        teachers=previous_net,
        fields=exemplar_fields(),
        selection=Selection(herding),
        rule=nearest_mean if options.rule == "nearest-mean" else argmax_rule,
        adopt=needs_head("sigmoid"),
        training=SUMMED_TRAINING,
    )


PRESETS: Mapping[str, Preset] = {
    "icarl": Preset(
        ICARL_TRAINING,
        options={"reduction": "mean"},
        arch="resnet32-linear",
        head_width=100,
    ),
}
