"""iCaRL: herded exemplars, sigmoid distillation, and classification by the nearest class mean.

Kept between increments: exemplars in herding order, best first. The class means are part of
the classifier: they are computed from the exemplars as they decode from storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgecil.context import Context, class_means
from edgecil.memory.fields import exemplar_fields
from edgecil.method import Preset, Recipe, Selection, argmax_rule
from edgecil.nets.rules import NearestMeanRule, Rule
from edgecil.options import option
from edgecil.parts.lessons import REDUCTION_HELP, REDUCTIONS, sigmoid_recipe
from edgecil.rankings import herding, herding_dot
from edgecil.settings import ICARL_TRAINING

PAPER = (
    "Rebuffi, Kolesnikov, Sperl and Lampert: iCaRL: Incremental Classifier and "
    "Representation Learning, CVPR 2017"
)


@dataclass(frozen=True)
class Options:
    """Options of ``icarl``."""

    reduction: Literal["sum", "mean"] = option("sum", REDUCTION_HELP, choices=REDUCTIONS)
    rule: Literal["nearest-mean", "argmax"] = option(
        "nearest-mean", "classify by class means or by the head (hybrid 1)",
        choices=("nearest-mean", "argmax"),
    )  # fmt: skip
    repeats: bool = option(
        False, "herding may pick an image again, and lists it once (the published code)"
    )


def nearest_mean(ctx: Context) -> Rule:
    """Return the nearest-mean rule of the stored exemplars and their mirror images."""
    return NearestMeanRule(class_means(ctx, ctx.sets["exemplars"], 0, mirror=True))


def recipe(options: Options) -> Recipe:
    """Return the recipe of iCaRL."""
    return sigmoid_recipe(
        "icarl",
        options.reduction,
        view="new+kept",
        fields=exemplar_fields(),
        selection=Selection(herding_dot if options.repeats else herding),
        rule=nearest_mean if options.rule == "nearest-mean" else argmax_rule,
        updates_known=True,
    )


PRESETS: Mapping[str, Preset] = {
    "icarl": Preset(
        ICARL_TRAINING,
        options={"reduction": "mean", "repeats": True},
        arch="resnet32-linear",
        head_width=100,
    ),
}
