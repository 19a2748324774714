"""LUCIR: cosine head, features that keep their direction, and a margin to the new classes.

Hou et al. 2019. Kept between increments: exemplars in herding order.

Where the head has a hidden layer (MobileNetV3), the features of the paper are its outputs: what the
rows are compared with. Several ranks rank the margins over the old images of each one's slice of
the batch, a mean over unequally many; a single process does so over the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edgecil.context import Context, Setup, ce_span
from edgecil.data.images import Batch
from edgecil.losses.classification import cross_entropy
from edgecil.losses.cosine import imprinted, less_forget, less_forget_weight, margin_ranking
from edgecil.memory.fields import exemplar_fields
from edgecil.method import (
    STUDENT,
    Groups,
    Phase,
    Preset,
    Recipe,
    Selection,
    Term,
    Terms,
    View,
    needs_head,
    previous_net,
)
from edgecil.nets.heads import CosineHead
from edgecil.options import option
from edgecil.parts.rows import held_below
from edgecil.parts.views import balanced, remember_trained
from edgecil.rankings import herding
from edgecil.settings import Optim, Schedule, Training

PAPER = (
    "Hou, Pan, Loy, Wang and Lin: Learning a Unified Classifier Incrementally via "
    "Rebalancing, CVPR 2019"
)


@dataclass(frozen=True)
class Options:
    """Options of ``lucir``."""

    less_forget: float = option(
        5.0, "weight of the less-forget term, times sqrt(K_o / K_n) (ImageNet: 10)", low=0.0
    )
    margin_weight: float = option(1.0, "weight of the margin ranking", low=0.0)
    margin: float = option(0.5, "m of the margin ranking, as a cosine", low=0.0, high=2.0)
    hardest: int = option(2, "new classes each image is ranked against", low=1, high=100)
    imprint: bool = option(True, "start new rows from the mean features of their classes")
    balanced_finetuning: bool = option(
        False, "fine-tune the head on equally many images of each class"
    )


def _embedded(net: Any, features: Tensor) -> Tensor:
    """Return what the rows of the head are compared with, ``(N, E)``."""
    found: Tensor = net.head.embedded(features)
    return found


def _rows(ctx: Context) -> CosineHead:
    rows = ctx.net.head.rows
    assert isinstance(rows, CosineHead)
    return rows


def _below(ctx: Context) -> Groups:
    """Return the groups that the features depend on: a hidden layer belongs to the head."""
    return ("backbone",) if ctx.net.head.rows is ctx.net.head else STUDENT


def step(options: Options, ctx: Context, batch: Batch) -> Terms:
    """Return cross-entropy, less-forget term and margin ranking."""
    outputs = ctx.net(batch.images)
    old, new = ctx.classes.old, ctx.classes.new
    span = ce_span(ctx, "seen")
    terms = {"classification": Term(cross_entropy(outputs.logits, batch.labels, span))}
    if ctx.teachers:
        features = _embedded(ctx.net, outputs.features)
        with torch.no_grad():
            taught = _embedded(
                ctx.teachers["previous"], ctx.teach("previous", batch.images).features
            )
        weight = less_forget_weight(options.less_forget, old, new)
        terms["less-forget"] = Term(less_forget(taught, features), weight, to=_below(ctx))
        # Zero without old images in the batch: to look whether there are any would wait for the
        # device in every step.
        cosines = _rows(ctx).cosines(features)[:, : old + new]
        term = margin_ranking(cosines, batch.labels, old, options.margin, options.hardest)
        terms["margin ranking"] = Term(term, options.margin_weight)
    return terms


def finetune_step(ctx: Context, batch: Batch) -> Terms:
    """Return the cross-entropy on balanced images, for the head alone."""
    with torch.no_grad():
        features = ctx.net(batch.images).features
    logits = ctx.net.head(features)
    loss = cross_entropy(logits, batch.labels, ce_span(ctx, "seen"))
    return {"balanced classification": Term(loss, to=("head",))}


@torch.no_grad()
def begin(options: Options, ctx: Context) -> None:
    """Imprint the new rows from the features of the network as it was."""
    if options.imprint and ctx.classes.old:
        new, weight = ctx.sets["new"], _rows(ctx).weight
        classes = range(ctx.classes.old, ctx.classes.seen)
        features = _embedded(ctx.net, ctx.features(new))
        labels = new.labels.to(ctx.device)
        rows = imprinted(features, labels, classes, weight[: ctx.classes.old])
        weight[classes.start : classes.stop] = rows


def new_rows(ctx: Context) -> Mapping[str, Tensor]:
    """Return the mask that holds the rows of the old classes (their learning rate is 0)."""
    return held_below(ctx, ctx.classes.old)


def rows_alone(ctx: Context) -> Mapping[str, Tensor]:
    """Return masks that hold a hidden layer: fine-tuning is for the rows."""
    trained = set(_rows(ctx).parameters())
    every = ctx.net.head.named_parameters(prefix="head")
    return {name: torch.zeros_like(p) for name, p in every if p not in trained}


def phases(options: Options, setup: Setup) -> tuple[Phase, ...]:
    """Return training, and on request fine-tuning of the head on balanced images."""
    view: View = "new+kept" if setup.images["kept"] else "new"
    train = Phase("train", partial(step, options), setup.training, view, masks=new_rows)
    if not (options.balanced_finetuning and setup.images["kept"]):
        return (train,)
    # Section 4.1 of the supplement: 20 epochs at 0.01, divided by 10 after 10.
    optim = Optim(0.01, 0.9, 5e-4, Schedule("step", (0.5,)))
    finetune = Phase(
        "class-balanced fine-tuning",
        finetune_step,
        replace(setup.training, epochs=20, optim=optim),
        balanced,
        trains=("head",),
        masks=rows_alone,
        prepare=remember_trained,
        mode="eval",
    )
    return train, finetune


def recipe(options: Options) -> Recipe:
    """Return the recipe of LUCIR."""
    return Recipe(
        "lucir",
        phases=partial(phases, options),
        head_kind="cosine",
        teachers=previous_net,
        fields=exemplar_fields(),
        selection=Selection(herding),
        begin=partial(begin, options),
        adopt=needs_head("cosine"),
    )


# LUCIR's code: 160 epochs of CIFAR-100, divided by 10 after 80 and 120; 90 of ImageNet.
_CIFAR = Training(160, 128, Optim(0.1, 0.9, 5e-4, Schedule("step", (0.5, 0.75))))
_IMAGENET = Training(90, 128, Optim(0.1, 0.9, 1e-4, Schedule("step", (1 / 3, 2 / 3))))
PRESETS: Mapping[str, Preset] = {
    "cifar": Preset(_CIFAR, arch="resnet32-b-linear"),
    "imagenet": Preset(_IMAGENET, options={"less_forget": 10.0}, arch="resnet18-linear"),
}
