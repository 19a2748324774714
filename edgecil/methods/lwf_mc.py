"""LwF-MC: one sigmoid per class; old units are taught by the previous network's outputs.

iCaRL's training without exemplars, and the baseline of LwM and M2KD. Kept between increments:
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from edgecil.data.images import Batch
from edgecil.losses.distillation import sigmoid_losses
from edgecil.method import (
    Context,
    Preset,
    Recipe,
    Term,
    Terms,
    needs_head,
    one_phase,
    previous_net,
)
from edgecil.options import option
from edgecil.settings import ABD_TRAINING, ICARL_TRAINING, SUMMED_TRAINING


@dataclass(frozen=True)
class Options:
    """Options of ``lwf-mc``."""

    reduction: Literal["sum", "mean"] = option(
        "sum", "add the units up, or average them (iCaRL; wants lr 2.0)", choices=("sum", "mean")
    )


def step(options: Options, ctx: Context, batch: Batch) -> Terms:
    """Return iCaRL's loss on new images."""
    teacher = ctx.teach("previous", batch.images).logits if ctx.teachers else None
    logits = ctx.net(batch.images).logits
    weight = 1.0 if options.reduction == "sum" else 1 / logits.shape[1]
    losses = sigmoid_losses(logits, batch.labels, ctx.classes.old, teacher)
    return {name: Term(value, weight) for name, value in losses.items()}


def recipe(options: Options) -> Recipe:
    """Return the recipe of LwF-MC."""
    return Recipe(
        "lwf-mc",
        phases=one_phase(partial(step, options)),
        head_kind="sigmoid",
        teachers=previous_net,
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
    # ABD's baseline: sum over the seen units at lr 0.1.
    "abd": Preset(ABD_TRAINING, arch="resnet32"),
}
