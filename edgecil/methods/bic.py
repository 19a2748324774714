"""BiC: replay and distillation, then two numbers that take the bias out of the new logits.

Wu et al. 2019. Kept between increments: exemplars, a tenth of which (of few, one) is never trained
on, in any increment: the bias is fitted on these. The two numbers are part of the classifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from edgecil.context import Context, Setup, ce_span
from edgecil.data.images import Batch, ImageSet, concat
from edgecil.losses.bias_correction import MILESTONES, fit_by_descent, fit_exactly
from edgecil.losses.classification import cross_entropy
from edgecil.losses.distillation import softmax_distillation
from edgecil.memory.fields import Field, exemplar_fields
from edgecil.method import (
    Origin,
    Phase,
    Preset,
    Recipe,
    Selection,
    Term,
    Terms,
    needs_head,
    previous_net,
)
from edgecil.nets.rules import CorrectedRule, Rule
from edgecil.options import option
from edgecil.parts.views import first_of_each
from edgecil.rankings import herding
from edgecil.settings import ABD_TRAINING, Optim, Schedule, Training

HELD = Field("exemplars.held_out", ("K",), "kept apart for the bias, never trained on", "BOOL")

PAPER = "Wu, Chen, Wang, Ye, Liu, Guo and Fu: Large Scale Incremental Learning, CVPR 2019"


@dataclass(frozen=True)
class Options:
    """Options of ``bic``."""

    temperature: float = option(2.0, "T of the softened probabilities", low=0.1, high=100.0)
    held_out: float = option(
        0.1, "share of the images that the bias is fitted on", low=0.01, high=0.5
    )
    fit: Literal["exact", "early-stopped"] = option(
        "exact", "the minimum, or SGD as published", choices=("exact", "early-stopped")
    )
    fit_lr: float = option(0.1, "learning rate of the early-stopped fit", low=0.0, high=10.0)
    fit_epochs: int = option(200, "epochs of the early-stopped fit", low=0, high=10_000)
    ridge: float = option(1e-3, "holds alpha near 1 in the exact fit", low=1e-6, high=10.0)
    pairs: Literal["last", "all"] = option(
        "last", "correct the last increment, or each by its own pair (ABD)",
        choices=("last", "all"),
    )  # fmt: skip


def begin(options: Options, ctx: Context) -> None:
    """Hold a part of every new class out, and say where that is too little to fit the bias on."""
    _, held = ctx.split(ctx.sets["new"], options.held_out, "held-out")
    flags = np.zeros(len(ctx.sets["new"]), bool)
    flags[held.cpu().numpy()] = True
    ctx.columns[HELD.name] = flags
    if ctx.classes.old:
        counts = held_out_counts(ctx)
        lacking = int((counts == 0).sum())
        if not can_fit(ctx, counts):
            ctx.note("no image of old or of new classes is held out: the bias stays as it is")
        elif lacking:
            ctx.note(
                f"the bias is fitted without {lacking} of {len(counts)} classes: too few images"
            )


def part(ctx: Context, *, held_out: bool) -> ImageSet:
    """Return the images that are held out, or those to train on, old and new."""
    flags = {"new": ctx.columns[HELD.name]}
    if len(ctx.sets["kept"]):
        flags["kept"] = ctx.kept.read(HELD.name)
    sets = [
        ctx.sets[name].subset(torch.from_numpy(mask == held_out).to(ctx.sets[name].labels.device))
        for name, mask in flags.items()
    ]
    return concat(sets)


def held_out_counts(ctx: Context) -> Tensor:
    """Return how many images of every class are held out, ``(K,)``."""
    labels = part(ctx, held_out=True).labels.cpu()
    return torch.bincount(labels, minlength=ctx.classes.seen)


def can_fit(ctx: Context, counts: Tensor) -> bool:
    """Return whether images of old and of new classes are held out, as ``counts`` ``(K,)``."""
    old = ctx.classes.old
    return bool(counts[:old].any() and counts[old:].any())


def pairs(ctx: Context, kind: str) -> CorrectedRule | None:
    """Return the correction that the student's old logits have while it learns."""
    rule = ctx.previous_rule
    return rule if kind == "all" and isinstance(rule, CorrectedRule) else None


def step(options: Options, ctx: Context, batch: Batch) -> Terms:
    """Return (1 - lambda) CE and lambda KD_T with lambda = K_o / K (eqs. (1) to (3))."""
    outputs = ctx.net(batch.images)
    old, seen = ctx.classes.old, ctx.classes.seen
    logits, correction = outputs.logits, pairs(ctx, options.pairs)
    if correction is not None:
        logits = torch.cat([correction(outputs.features, logits), logits[:, old:]], dim=1)
    share = old / seen
    loss = cross_entropy(logits, batch.labels, ce_span(ctx, "seen"))
    terms = {"classification": Term(loss, 1 - share)}
    if ctx.teachers:
        taught = ctx.teach("previous", batch.images)
        # The teacher is the classifier as it was: its own bias is corrected.
        rule = ctx.previous_rule
        target = taught.logits[:, :old]
        if isinstance(rule, CorrectedRule):
            target = rule(taught.features, taught.logits)
        value = softmax_distillation(target, logits[:, :old], options.temperature)
        terms["distillation"] = Term(value, share)
    return terms


def phases(options: Options, setup: Setup) -> tuple[Phase, ...]:
    """Return training on what is not held out; the bias is a fit, not a phase."""
    view = partial(part, held_out=False)
    return (Phase("train", partial(step, options), setup.training, view),)


def rule(options: Options, ctx: Context) -> Rule:
    """Return the corrected logits, fitted on equally many held-out images of every class.

    Classes without any are left out, their logits too: a rare class has none, nor has a memory of
    one exemplar per class. The network is frozen and the images are not changed, so their logits
    are constants.
    """
    old, seen = ctx.classes.old, ctx.classes.seen
    before = pairs(ctx, options.pairs) or CorrectedRule.identity(old).to(ctx.device)
    pair = torch.tensor([1.0, 0.0], dtype=torch.float64)
    counts = held_out_counts(ctx)
    if can_fit(ctx, counts):
        images, present = part(ctx, held_out=True), torch.nonzero(counts)[:, 0]
        chosen = images.subset(first_of_each(images.labels, int(counts[present].min())))
        first_new = int((present < old).sum())
        with torch.no_grad():
            features = ctx.features(chosen)
            logits = ctx.net.head(features)[:, :seen]
            logits = torch.cat([before(features, logits), logits[:, old:]], dim=1)
        pair = fit(
            options, ctx.setup.training, logits.cpu()[:, present],
            torch.searchsorted(present, chosen.labels.cpu()), slice(first_new, len(present)),
        )  # fmt: skip
        ctx.note(f"bias correction: alpha {pair[0]:.3f}, beta {pair[1]:.3f}")
    new = torch.ones(seen - old)
    return CorrectedRule(
        torch.cat([before.scale.cpu(), float(pair[0]) * new]),
        torch.cat([before.shift.cpu(), float(pair[1]) * new]),
    )


def fit(options: Options, training: Training, logits: Tensor, labels: Tensor, new: slice) -> Tensor:
    """Return (alpha, beta).

    The early-stopped fit has the batches of ``training`` and the milestones of its schedule,
    stretched over its own epochs: the published code doubles both.
    """
    if options.fit == "exact":
        return fit_exactly(logits, labels, new, options.ridge)
    schedule = training.optim.schedule
    return fit_by_descent(
        logits, labels, new,
        lr=options.fit_lr, epochs=options.fit_epochs, batch_size=training.batch_size,
        milestones=schedule.milestones if schedule.kind == "step" else MILESTONES,
    )  # fmt: skip


def adopt(origin: Origin) -> str | None:
    """Accept softmax networks with exemplars of which some were never trained on."""
    reason = needs_head("softmax")(origin)
    if reason is None and HELD.name not in origin.kept_fields:
        reason = "it needs exemplars of the old classes that were never trained on"
    return reason


def recipe(options: Options) -> Recipe:
    """Return the recipe of BiC."""
    return Recipe(
        "bic",
        phases=partial(phases, options),
        teachers=previous_net,
        fields=(*exemplar_fields(), HELD),
        selection=Selection(partial(herding, normalise=False), apart=HELD.name),
        begin=partial(begin, options),
        rule=partial(rule, options),
        reads_rule=True,
        adopt=adopt,
    )


PRESETS: Mapping[str, Preset] = {
    # BiC on CIFAR-100 as FACIL quotes it: 250 epochs, divided by 10 after 100, 150 and 200.
    "bic": Preset(
        Training(250, 128, Optim(0.1, 0.9, 2e-4, Schedule("step", (0.4, 0.6, 0.8)))),
        options={"fit": "early-stopped"},
        arch="resnet32",
    ),
    # ABD's baseline. Its fit shuffles and augments the held-out images, with batch norms in train
    # mode, and decays both numbers alike; here logits are constants, and beta is held as in BiC.
    "abd": Preset(
        ABD_TRAINING,
        options={"fit": "early-stopped", "fit_lr": 0.001, "fit_epochs": 250, "pairs": "all"},
        arch="resnet32",
    ),
}
