"""DeepInversion: softened outputs on new images and on images synthesised from the network.

Yin et al. 2020, as ABD's baseline (Smith et al. 2021, section 4): the generator form, or
direct optimisation of pixels by ``source=pixels``. Kept between increments: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from edgecil.context import Context, ce_span
from edgecil.data.images import Batch
from edgecil.losses.classification import cross_entropy
from edgecil.losses.distillation import softmax_distillation
from edgecil.losses.replay import padded_distillation
from edgecil.method import Preset, Recipe, Term, Terms
from edgecil.options import option
from edgecil.parts.dreaming import RELEASED, DreamOptions, dream_recipe, with_drawn
from edgecil.settings import ABD_AUGMENT, ABD_TRAINING


@dataclass(frozen=True)
class Options(DreamOptions):
    """Options of ``deepinversion``."""

    temperature: float = option(2.0, "T of the softened probabilities", low=0.1, high=100.0)
    kd_weight: float = option(1.0, "weight of either distillation", low=0.0)
    real_units: Literal["seen", "old"] = option(
        "seen", "student's softmax on new images: eq. (9), or the old units (released code)",
        choices=("seen", "old"),
    )  # fmt: skip


def step(options: Options, ctx: Context, batch: Batch) -> Terms:
    """Return the terms of ABD eq. (8), from one forward pass of either network."""
    span = ce_span(ctx, "seen")
    if not ctx.teachers:
        logits = ctx.net(batch.images).logits
        return {"classification": Term(cross_entropy(logits, batch.labels, span))}
    real, old = len(batch.labels), ctx.classes.old
    images = with_drawn(ctx, batch.images)
    taught = ctx.teach("previous", images).logits[:, :old]
    logits = ctx.net(images).logits[:, span]
    if options.real_units == "seen":
        on_real = padded_distillation(taught[:real], logits[:real], options.temperature)
    else:
        on_real = softmax_distillation(taught[:real], logits[:real, :old], options.temperature)
    on_synthetic = padded_distillation(taught[real:], logits[real:], options.temperature)
    return {
        "classification": Term(cross_entropy(logits[:real], batch.labels, span)),
        "distillation, real": Term(on_real, options.kd_weight),
        "distillation, synthetic": Term(on_synthetic, options.kd_weight),
    }


def recipe(options: Options) -> Recipe:
    """Return the recipe of DeepInversion."""
    return dream_recipe("deepinversion", options, partial(step, options))


PAPER = (
    "Yin, Molchanov, Alvarez, Li, Mallya, Hoiem, Jha and Kautz: Dreaming to Distill: "
    "Data-free Knowledge Transfer via DeepInversion, CVPR 2020"
)
PRESETS: Mapping[str, Preset] = {
    "abd": Preset(ABD_TRAINING, arch="resnet32"),
    "abd-released": Preset(
        ABD_TRAINING,
        options={**RELEASED, "real_units": "old"},
        arch="resnet32",
        augment=ABD_AUGMENT,
    ),
}  # fmt: skip
