"""EEIL: distillation of every old head apart, then fine-tuning on equally many of each class.

Castro et al. 2018. Kept between increments: exemplars and their labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from edgecil.context import Context, Setup, ce_span
from edgecil.data.images import Batch
from edgecil.losses.classification import cross_entropy
from edgecil.losses.distillation import softmax_distillation
from edgecil.memory.fields import exemplar_fields
from edgecil.method import (
    SOFTMAX_BASE,
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
from edgecil.options import option
from edgecil.parts.views import TRAINED, balanced, remember_trained
from edgecil.rankings import herding, nearest_to_mean
from edgecil.settings import ABD_TRAINING, Optim, Schedule, Training

THIRDS = Schedule("step", (1 / 3, 2 / 3))
# Features are unit vectors in herding (iCaRL's), and as they are in ABD's code.
RANKINGS: Mapping[str, Callable[..., Tensor]] = {
    "herding": herding, "nearest": partial(nearest_to_mean, normalise=False),
}  # fmt: skip
NOISE_DECAY = 0.55

ONE_CLASS = (
    "an increment of one class is not distilled: the softmax over one unit is always 1; "
    "lwf-coreset and bic distil all old classes at once"
)

PAPER = (
    "Castro, Marín-Jiménez, Guil, Schmid and Alahari: End-to-End Incremental Learning, ECCV 2018"
)


@dataclass(frozen=True)
class Options:
    """Options of ``eeil``."""

    temperature: float = option(2.0, "T of the softened probabilities", low=0.1, high=100.0)
    heads: Literal["sum", "share"] = option(
        "sum", "add the heads' distillations up, or weigh them by their classes (ABD)",
        choices=("sum", "share"),
    )  # fmt: skip
    base: float = option(
        1.0, "epochs of the base increment, as a part of the others", low=0.1, high=10.0
    )
    finetuning: float = option(
        0.75, "epochs of the balanced stage, as a part of the first", low=0.0, high=10.0
    )
    finetuning_lr: float = option(
        0.1, "learning rate of the balanced stage, as a part of the first", low=0.0, high=10.0
    )
    finetuned: Literal["network", "head"] = option(
        "network", "what the balanced stage trains (ABD: the head)", choices=("network", "head")
    )
    ranking: Literal["herding", "nearest"] = option(
        "herding", "exemplars by herding, or those nearest to the class mean (ABD)",
        choices=("herding", "nearest"),
    )  # fmt: skip
    noise: float = option(0.0, "eta of the gradient noise; the paper's is 0.3", low=0.0, high=10.0)


def distillation(
    options: Options, spans: Sequence[slice], total: int, taught: Tensor, logits: Tensor
) -> Tensor | None:
    """Return KD_T of the heads of several increments, each with a softmax of its own; a scalar.

    None when each has a single unit: the softmax of one unit is 1 whatever it says. ``total`` is
    the number of classes that shares are of.
    """
    parts = [
        softmax_distillation(taught[:, span], logits[:, span], options.temperature)
        * (1.0 if options.heads == "sum" else (span.stop - span.start) / total)
        for span in spans
        if span.stop - span.start > 1
    ]
    return torch.stack(parts).sum() if parts else None


def step(
    options: Options, teachers: Mapping[str, slice], to: Groups, ctx: Context, batch: Batch
) -> Terms:
    """Return the cross-entropy over all seen classes and one distillation per teacher.

    ``teachers`` says which increments' heads each of them teaches, ``to`` what is trained.
    """
    logits = ctx.net(batch.images).logits
    loss = cross_entropy(logits, batch.labels, ce_span(ctx, "seen"))
    terms = {"classification": Term(loss, to=to)}
    spans = {name: ctx.classes.spans[h] for name, h in teachers.items() if name in ctx.teachers}
    total = sum(span.stop - span.start for heads in spans.values() for span in heads)
    for name, heads in spans.items():
        taught = ctx.teach(name, batch.images).logits
        value = distillation(options, heads, total, taught, logits)
        if value is not None:
            terms[f"distillation, {name}"] = Term(value, to=to)
    if any(span.stop - span.start == 1 for span in spans.get("previous", ())):
        ctx.note(ONE_CLASS)
    if options.noise:
        terms["noise"] = Term(noise(ctx, options.noise), to=to)
    return terms


def noise(ctx: Context, eta: float) -> Tensor:
    """Return a scalar whose gradient is Gaussian noise of variance eta / (1 + step)^0.55.

    The gradient of <n, theta> is n: no optimiser needs to know (EEIL section 5.1).
    """
    deviation = math.sqrt(eta / (1 + ctx.step) ** NOISE_DECAY)
    products = [
        (torch.randn(p.shape).to(p) * p).sum() for p in ctx.net.parameters() if p.requires_grad
    ]
    return deviation * torch.stack(products).sum()


def phases(options: Options, setup: Setup) -> tuple[Phase, ...]:
    """Return training, and after the base increment fine-tuning on balanced images."""
    old, new = slice(0, -1), slice(-1, None)
    view: View = "new+kept" if setup.images["kept"] else "new"
    first = partial(step, options, {"previous": old}, STUDENT)
    part = 1.0 if setup.classes.old else options.base
    train = Phase("train", first, setup.training, view, part=part)
    if not setup.images["kept"] or not options.finetuning:
        return (train,)
    # Section 4.3: a tenth of the rate, and the same number of images of every class.
    slower = setup.training.updated(lr=options.finetuning_lr * setup.training.optim.lr)
    if slower.optim.schedule.kind == "step":
        slower = replace(slower, optim=replace(slower.optim, schedule=THIRDS))
    trains: Groups = STUDENT if options.finetuned == "network" else ("head",)
    finetune = Phase(
        "balanced fine-tuning",
        partial(step, options, {"previous": old, TRAINED: new}, trains),
        slower,
        partial(balanced, rank=RANKINGS[options.ranking]),
        trains=trains,
        prepare=remember_trained,
        # Features that are not trained do not change: nor do their batch norms.
        mode="train" if options.finetuned == "network" else "eval",
        part=options.finetuning,
    )
    return train, finetune


def recipe(options: Options) -> Recipe:
    """Return the recipe of EEIL."""
    return Recipe(
        "eeil",
        phases=partial(phases, options),
        teachers=previous_net,
        fields=exemplar_fields(),
        selection=Selection(RANKINGS[options.ranking]),
        adopt=needs_head("softmax"),
        base=None if options.noise or options.base != 1 else SOFTMAX_BASE,
    )


PRESETS: Mapping[str, Preset] = {
    # The published code on CIFAR-100: 40 epochs, divided by 10 every 10, then 30. The base has 100;
    # the code begins with that network and does not say its schedule, which is stretched here. Its
    # augmentation was made once, before training.
    "eeil": Preset(
        Training(40, 128, Optim(0.1, 0.9, 1e-4, Schedule("step", (0.25, 0.5, 0.75)))),
        options={"noise": 0.3, "base": 2.5},
        arch="resnet32",
    ),
    # ABD's baseline: the balanced stage trains the last layer alone, at a hundredth of the rate and
    # as long as the first. What is left out: there its rate falls at the first stage's milestones,
    # not after thirds; its batch norms follow the balanced images; and as many logits of the old
    # network as the new head has teach it, where the network just trained was meant and is asked
    # here.
    "abd": Preset(
        ABD_TRAINING,
        options={
            "heads": "share", "ranking": "nearest", "finetuned": "head", "finetuning": 1.0,
            "finetuning_lr": 0.01,
        },
        arch="resnet32",
    ),
}  # fmt: skip
