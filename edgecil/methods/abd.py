"""Always be dreaming: synthetic old images, local cross-entropy, a balanced head.

ABD, Smith et al. 2021, section 6. Kept between increments: nothing (``warm_start`` keeps the
generator, as the released code does). A step is one forward pass of the student on real and
synthetic images together and one of the teacher, whose argmax labels the synthetic ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from edgecil.context import Context, ce_span
from edgecil.data.images import Batch
from edgecil.losses.classification import cross_entropy
from edgecil.losses.replay import output_distance, task_weights, weighted_cross_entropy
from edgecil.method import SOFTMAX_BASE, Preset, Recipe, Term, Terms
from edgecil.options import option
from edgecil.parts.dreaming import RELEASED, DreamOptions, dream_recipe, with_drawn
from edgecil.settings import ABD_AUGMENT, ABD_TRAINING


@dataclass(frozen=True)
class Options(DreamOptions):
    """Options of ``abd``; each row of the paper's Table 3 is one of them."""

    balance: bool = option(True, "weigh old and new classes by K_o/K and K_n/K in eq. (14)")
    local_ce: bool = option(True, "eq. (11) over the new classes alone; off: over all seen")
    kd_real: bool = option(True, "hold features on real images (eq. (13))")
    kd_synthetic: bool = option(True, "hold features on synthetic images (eq. (13))")
    finetuning: float = option(1.0, "lambda_ft, weight of eq. (14); 0 leaves it out", low=0.0)
    mu: float = option(0.1, "lambda_kd, weight of eq. (13)", low=0.0)
    kd_reduction: Literal["mean", "sum"] = option(
        "mean", "over old classes in eq. (13); lambda_kd = 0.1 belongs to the mean",
        choices=("mean", "sum"),
    )  # fmt: skip
    units: Literal["seen", "all"] = option(
        "seen", "softmax of eq. (14) and of the base increment: seen classes, or the whole head "
        "of fixed width (released code)", choices=("seen", "all"),
    )  # fmt: skip
    ce_share: bool = option(False, "weigh eq. (11) by K_n/K, too (released code)")
    bn_passes: int = option(
        1, "how often a step updates batch-norm statistics (released code: 2)", low=1, high=2
    )


@contextlib.contextmanager
def counted(net: nn.Module, passes: int) -> Iterator[None]:
    """Let one forward pass update batch-norm statistics as ``passes`` equal ones would.

    1 - (1 - m)^passes instead of the momentum m.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d) and m.momentum is not None]
    before = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 1 - (1 - (norm.momentum or 0.0)) ** passes
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


def head_units(options: Options, ctx: Context) -> int:
    """Return how many units the softmax over old and new classes runs over."""
    if options.units == "seen":
        return ctx.classes.seen
    return int(ctx.net.head.width)  # type: ignore[arg-type]


def class_weights(options: Options, ctx: Context) -> Tensor:
    """Return K_o/K for old and K_n/K for new classes ``(K,)``; ones without balancing."""
    old, seen = ctx.classes.old, ctx.classes.seen
    weights = task_weights(old, seen) if options.balance else torch.ones(seen)
    return weights.to(ctx.device)


def held(options: Options, real: int) -> slice:
    """Return the rows of eq. (13) among real images and as many synthetic ones after them."""
    start = 0 if options.kd_real and options.mu else real
    return slice(start, 2 * real if options.kd_synthetic and options.mu else real)


def step(options: Options, ctx: Context, batch: Batch) -> Terms:
    """Return the terms of eq. (15)."""
    units = head_units(options, ctx)
    if not ctx.teachers:
        logits = ctx.net(batch.images).logits
        return {"classification": Term(cross_entropy(logits, batch.labels, slice(0, units)))}
    real, old = len(batch.labels), ctx.classes.old
    images = with_drawn(ctx, batch.images)
    rows = held(options, real)
    # The teacher is shown what a loss wants to know about: eq. (14) the synthetic images.
    asked = images[rows.start : 2 * real if options.finetuning else rows.stop]
    taught = images.new_empty(0, old)
    if len(asked):
        taught = ctx.teach("previous", asked).logits[:, :old]
    with counted(ctx.net, options.bn_passes):
        outputs = ctx.net(images)
    span = ce_span(ctx, "new" if options.local_ce else "seen")
    local = cross_entropy(outputs.logits[:real], batch.labels, span)
    share = ctx.classes.new / ctx.classes.seen if options.ce_share else 1.0
    terms = {"classification": Term(local, share)}
    if rows.start < rows.stop:
        # W f - W f~ by the teacher's head: what its features and the student's make of it.
        student = ctx.teachers["previous"].head(outputs.features[rows])[:, :old]  # type: ignore[operator]
        mean = options.kd_reduction == "mean"
        distance = output_distance(taught[: len(student)], student, mean=mean)
        terms["distillation"] = Term(distance, options.mu, ("backbone",))
    if options.finetuning:
        labels = torch.cat([batch.labels, taught[-real:].argmax(dim=1)])
        logits = ctx.net.head(outputs.features.detach())[:, :units]
        value = weighted_cross_entropy(logits, labels, class_weights(options, ctx))
        terms["fine-tuning"] = Term(value, options.finetuning, ("head",))
    return terms


def recipe(options: Options) -> Recipe:
    """Return the recipe of ABD."""
    base = SOFTMAX_BASE if options.units == "seen" else None
    return dream_recipe("abd", options, partial(step, options), base)


PAPER = (
    "Smith, Hsu, Balloch, Shen, Jin and Kira: Always Be Dreaming: A New Approach for "
    "Data-Free Class-Incremental Learning, ICCV 2021"
)
PRESETS: Mapping[str, Preset] = {
    # Section 7: 250 epochs, 5000 steps of synthesis, flips and crops (appendix C).
    "abd": Preset(ABD_TRAINING, arch="resnet32"),
    # The code differs in what is set here. It also carries Adam's state of the generator over,
    # which starts anew here.
    "abd-released": Preset(
        ABD_TRAINING,
        options={**RELEASED, "units": "all", "ce_share": True, "bn_passes": 2},
        arch="resnet32",
        head_width=100,
        augment=ABD_AUGMENT,
    ),
}  # fmt: skip
