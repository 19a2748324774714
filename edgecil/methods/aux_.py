"""Auxiliary distillation: the second stage is distilled too, through a head of its own.

M2KD's ablation "aux" (section 4.4), over ``lwf-mc`` or ``icarl``. Kept between increments: the
auxiliary head, which is not part of the classifier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgecil.method import Recipe
from edgecil.options import option
from edgecil.parts.auxiliary import Auxiliary, add_auxiliary, keep_auxiliary
from edgecil.parts.lessons import REDUCTION_HELP, REDUCTIONS

PAPER = (
    "Zhou, Mai, Zhang, Xu, Wu and Davis: M2KD: Multi-model and Multi-level Knowledge "
    "Distillation for Incremental Learning, 2019"
)


@dataclass(frozen=True)
class Options:
    """Options of ``aux``."""

    auxiliary: float = option(1.0, "weight lambda of the auxiliary loss (eq. (4))", low=0.0)
    alpha: float = option(0.5, "weight of the ground truth in it (eq. (3))", low=0.0)
    reduction: Literal["sum", "mean"] = option("sum", REDUCTION_HELP, choices=REDUCTIONS)


def plug(host: Recipe, options: Options) -> Recipe:
    """Return ``host`` with auxiliary distillation from the last network."""
    settings = Auxiliary(options.auxiliary, options.alpha, options.reduction)
    return add_auxiliary(keep_auxiliary(host), settings)
