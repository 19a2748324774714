"""LwF-MC: one sigmoid per class; old units are taught by the previous network's outputs.

iCaRL's training without exemplars, and the baseline of LwM and M2KD. Kept between increments:
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgecil.method import Preset, Recipe
from edgecil.options import option
from edgecil.parts.lessons import REDUCTION_HELP, REDUCTIONS, sigmoid_recipe
from edgecil.settings import ABD_TRAINING, ICARL_TRAINING

PAPER = (
    "Rebuffi, Kolesnikov, Sperl and Lampert: iCaRL: Incremental Classifier and "
    "Representation Learning, CVPR 2017"
)


@dataclass(frozen=True)
class Options:
    """Options of ``lwf-mc``."""

    reduction: Literal["sum", "mean"] = option("sum", REDUCTION_HELP, choices=REDUCTIONS)


def recipe(options: Options) -> Recipe:
    """Return the recipe of LwF-MC."""
    return sigmoid_recipe("lwf-mc", options.reduction, updates_known=True)


PRESETS: Mapping[str, Preset] = {
    "icarl": Preset(
        ICARL_TRAINING,
        options={"reduction": "mean"},
        arch="resnet32-linear",
        head_width=100,
    ),
    # ABD's baseline: sum over the seen units at lr 0.1.
    "abd": Preset(ABD_TRAINING, arch="resnet32"),
}
