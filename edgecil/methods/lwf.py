"""Learning without forgetting: softened old outputs of the previous network on new images.

Kept between increments: nothing; the teacher is the current version itself.

"LwF" names two algorithms: with the cross-entropy over the new classes' units only
(``ce_scope=new``, Li and Hoiem; MFGR, MUC) and over all seen units (``seen``, ABD's baseline),
which end a factor of 2.6 apart on ten tasks of CIFAR-100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from edgecil.context import Context
from edgecil.data.images import Batch
from edgecil.errors import UsageError
from edgecil.method import (
    SOFTMAX_BASE,
    Preset,
    Recipe,
    Terms,
    needs_head,
    one_phase,
    previous_net,
)
from edgecil.options import option
from edgecil.parts.softened import softened_terms
from edgecil.settings import ABD_TRAINING, Optim, Training

PAPER = "Li and Hoiem: Learning without Forgetting, ECCV 2016"


@dataclass(frozen=True)
class Options:
    """Options of ``lwf``."""

    ce_scope: Literal["new", "seen"] = option(
        "new", "units of the softmax: the new classes, or all seen", choices=("new", "seen")
    )
    temperature: float = option(2.0, "T of the softened probabilities", low=0.1, high=100.0)
    ce_weight: float = option(1.0, "weight of the cross-entropy", low=0.0)
    kd_weight: float = option(1.0, "weight of the distillation", low=0.0)
    balance: bool = option(False, "weigh the two by K_n/K and K_o/K instead (MFGR section 4; MUC)")


def step(options: Options, ctx: Context, batch: Batch) -> Terms:
    """Return CE and KD_T over the old units, both on new images."""
    classes, weights = ctx.classes, (options.ce_weight, options.kd_weight)
    if options.balance:
        share = 1 - classes.taught / classes.seen
        weights = 1 - share, share
    return softened_terms(ctx, batch, options.ce_scope, options.temperature, *weights)


def recipe(options: Options) -> Recipe:
    """Return the recipe of LwF.

    Raises:
        UsageError: weights beside ``balance``, which gives its own.
    """
    if options.balance and (options.ce_weight, options.kd_weight) != (1, 1):
        raise UsageError("balance gives both weights: ce_weight and kd_weight go without it")
    return Recipe(
        "lwf",
        phases=one_phase(partial(step, options)),
        teachers=previous_net,
        temperature=options.temperature,
        adopt=needs_head("softmax"),
        updates_known=True,
        base=SOFTMAX_BASE if options.ce_weight == 1 else None,
    )


PRESETS: Mapping[str, Preset] = {
    # ABD section 6 and its released code: LwF as the data-free baseline.
    "abd": Preset(
        ABD_TRAINING,
        options={"ce_scope": "seen"},
        arch="resnet32",
    ),
    # MFGR section 5.1: cosine from 0.01, CE over the new classes, weights K_n/K and K_o/K.
    "mfgr": Preset(
        Training(150, 128, Optim(0.01, 0.9, 5e-4)),
        options={"ce_scope": "new", "balance": True},
        arch="resnet34-3x3",
    ),
}
