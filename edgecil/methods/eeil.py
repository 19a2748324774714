"""EEIL: distillation of every old head apart, then fine-tuning on equally many of each class.

Castro et al. 2018. Kept between increments: exemplars and their labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from edgecil.context import Context, Setup, ce_span
from edgecil.data.images import Batch
from edgecil.exemplars import herding
from edgecil.losses.classification import cross_entropy
from edgecil.losses.distillation import softmax_distillation
from edgecil.memory.fields import exemplar_fields
from edgecil.method import (
    SOFTMAX_BASE,
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
from edgecil.settings import ABD_TRAINING, Optim, Schedule, Training

THIRDS = Schedule("step", (1 / 3, 2 / 3))
NOISE_DECAY = 0.55

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
    finetuning: float = option(
        0.75, "epochs of the balanced stage, as a part of the first", low=0.0, high=10.0
    )
    noise: float = option(0.0, "eta of the gradient noise; the paper's is 0.3", low=0.0, high=10.0)


def distillation(
    options: Options, ctx: Context, taught: Tensor, logits: Tensor, heads: slice
) -> Tensor | None:
    """Return KD_T of the heads of several increments, each with a softmax of its own; a scalar.

    None when each has a single unit: the softmax of one unit is 1 whatever it says.
    """
    spans = [span for span in ctx.classes.spans[heads] if span.stop - span.start > 1]
    if not spans:
        return None
    total = sum(span.stop - span.start for span in spans)
    parts = [
        softmax_distillation(taught[:, span], logits[:, span], options.temperature)
        * (1.0 if options.heads == "sum" else (span.stop - span.start) / total)
        for span in spans
    ]
    return torch.stack(parts).sum()


def step(options: Options, teachers: Mapping[str, slice], ctx: Context, batch: Batch) -> Terms:
    """Return the cross-entropy over all seen classes and one distillation per teacher.

    ``teachers`` says which increments' heads each of them teaches.
    """
    logits = ctx.net(batch.images).logits
    terms = {"classification": Term(cross_entropy(logits, batch.labels, ce_span(ctx, "seen")))}
    for name, heads in teachers.items():
        if name in ctx.teachers:
            taught = ctx.teach(name, batch.images).logits
            value = distillation(options, ctx, taught, logits, heads)
            if value is not None:
                terms[f"distillation, {name}"] = Term(value)
    if options.noise:
        terms["noise"] = Term(noise(ctx, options.noise))
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
    train = Phase("train", partial(step, options, {"previous": old}), setup.training, view)
    if not setup.images["kept"] or not options.finetuning:
        return (train,)
    # Section 4.3: a tenth of the rate, and the same number of images of every class.
    slower = setup.training.updated(lr=0.1 * setup.training.optim.lr)
    if slower.optim.schedule.kind == "step":
        slower = replace(slower, optim=replace(slower.optim, schedule=THIRDS))
    finetune = Phase(
        "balanced fine-tuning",
        partial(step, options, {"previous": old, TRAINED: new}),
        slower,
        balanced,
        prepare=remember_trained,
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
        selection=Selection(herding),
        adopt=needs_head("softmax"),
        base=None if options.noise else SOFTMAX_BASE,
    )


PRESETS: Mapping[str, Preset] = {
    # The published code on CIFAR-100: 40 epochs, divided by 10 every 10, then 30.
    "eeil": Preset(
        Training(40, 128, Optim(0.1, 0.9, 1e-4, Schedule("step", (0.25, 0.5, 0.75)))),
        options={"noise": 0.3},
        arch="resnet32",
    ),
    # ABD's baseline; its fine-tuning of the last layer alone is not repeated here.
    "abd": Preset(ABD_TRAINING, options={"heads": "share"}, arch="resnet32"),
}
