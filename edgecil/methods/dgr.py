"""Deep generative replay: a variational autoencoder draws images of the old classes.

DGR, Shin et al. 2017, as it is run for Table 1 of ABD (Smith et al. 2021). Kept between
increments: the VAE, 114.9 MB at 32 pixels. A step shows the student as many drawn images as new
ones: the old network's argmax is their label, its softened outputs are distilled on them. New and
drawn images train the next VAE in the same step; it goes on from the kept one.

The published run trains the VAE with the classifier's own SGD (lr 0.1) and ends below plain
fine-tuning. That choice of optimiser is a likely cause, and the figure no fair verdict on
generative replay: `vae_optimiser=adam` is the usual one. The student sees drawn images normalised
as it does all others; in the published run both networks see values in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgecil.context import Context, Setup
from edgecil.data.images import Batch
from edgecil.data.pixels import from_unit, to_unit
from edgecil.losses.distillation import softmax_distillation
from edgecil.losses.replay import task_weights, weighted_cross_entropy
from edgecil.losses.vae import latent_divergence, reconstruction
from edgecil.memory.fields import Field
from edgecil.memory.store import Store
from edgecil.method import (
    STUDENT,
    ModuleSpec,
    Origin,
    Phase,
    Preset,
    Recipe,
    Term,
    Terms,
    needs_head,
)
from edgecil.nets.build import net_arrays
from edgecil.nets.taps import freeze
from edgecil.options import option
from edgecil.settings import ABD_AUGMENT, ABD_TRAINING, Optim, Preprocess
from edgecil.synthesis.vae import Vae, VaeSpec

VAE = "vae"
"""Name of the module that is trained, of its parameter group, and of the field."""
REPLAY = "replay"
"""The frozen VAE of the increment before, among the teachers."""
ADAM_LR = 1e-3
DRAWN = 64
"""Images that the VAE draws at once where it is only looked at."""


@dataclass(frozen=True)
class Options:
    """Options of ``dgr``; defaults are those of ABD's runs."""

    mu: float = option(1.0, "weight of the distillation on drawn images", low=0.0)
    temperature: float = option(2.0, "T of the softened probabilities", low=0.1, high=100.0)
    vae_width: int = option(64, "channels of the VAE's first map; innermost: 8 times", low=1)
    vae_latent: int = option(1024, "dimensions of the VAE's latent space", low=1)
    vae_optimiser: Literal["sgd", "adam"] = option(
        "sgd", "of the VAE: the classifier's SGD (ABD's runs), or Adam; no weight decay",
        choices=("sgd", "adam"),
    )  # fmt: skip
    vae_lr: float = option(
        0.0, "learning rate of the VAE; 0: the classifier's with sgd, 0.001 with adam",
        low=0.0, high=10.0,
    )  # fmt: skip

    @property
    def spec(self) -> VaeSpec:
        """Sizes of the VAE that is trained."""
        return VaeSpec(self.vae_width, self.vae_latent)


def vae_optim(options: Options, classifier: Optim) -> Optim:
    """Return the VAE's optimiser: the classifier's schedule and momentum, no weight decay."""
    lr = options.vae_lr or (classifier.lr if options.vae_optimiser == "sgd" else ADAM_LR)
    return replace(classifier, lr=lr, weight_decay=0.0, kind=options.vae_optimiser)


def kept_vae(kept: Store, size: int) -> Vae:
    """Return the VAE of an increment, in the sizes it was kept in."""
    spec = kept.field(VAE).shape
    assert isinstance(spec, VaeSpec)
    return spec.build(size, kept.read(VAE))


def kept_images(kept: Store, preprocess: Preprocess, count: int) -> Tensor:
    """Return ``count`` images ``(N, 3, S, S)`` as the kept VAE draws them, normalised."""
    vae = kept_vae(kept, preprocess.size)
    parts = [vae.draw(min(DRAWN, count - first)) for first in range(0, count, DRAWN)]
    return from_unit(torch.cat(parts), preprocess)


def build_vae(options: Options, ctx: Context) -> nn.Module:
    """Return the VAE to train: it goes on from the kept one where that has the same sizes."""
    if VAE in ctx.kept:
        if ctx.kept.field(VAE).shape == options.spec:
            return kept_vae(ctx.kept, ctx.preprocess.size)
        ctx.note("the kept VAE has other sizes: the new one starts from random weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ctx.stream(VAE).initial_seed())
        return options.spec.build(ctx.preprocess.size)


def teachers(ctx: Context) -> dict[str, nn.Module]:
    """Return the network before this increment and the VAE kept with it; none at the base."""
    if ctx.previous is None:
        return {}
    replay = freeze(kept_vae(ctx.kept, ctx.preprocess.size))
    return {"previous": ctx.previous, REPLAY: replay.to(ctx.device)}


def vae_terms(ctx: Context, images: Tensor, weights: Tensor) -> Terms:
    """Return the VAE's losses on ``images`` ``(N, 3, S, S)`` in [0, 1]."""
    vae: Any = ctx.modules[VAE]
    logits, mean, log_variance = vae(images, vae.noise(len(images), skip=ctx.offset))
    rebuilt = reconstruction(logits, images, weights)
    spread = latent_divergence(mean, log_variance, images[0].numel())
    return {
        "reconstruction": Term(rebuilt, 1.0, (VAE,)),
        "latent divergence": Term(spread, 1.0, (VAE,)),
    }


def step(options: Options, ctx: Context, batch: Batch) -> Terms:
    """Return the terms of solver and VAE on new images and as many drawn ones."""
    real, old, seen = len(batch.labels), ctx.classes.old, ctx.classes.seen
    images, labels = batch.images, batch.labels
    unit, taught = to_unit(images, ctx.preprocess), None
    if ctx.teachers:
        replay: Any = ctx.teachers[REPLAY]
        drawn = replay.draw(real, skip=ctx.offset)
        shown = from_unit(drawn, ctx.preprocess).contiguous(memory_format=torch.channels_last)
        taught = ctx.teach("previous", shown).logits[:, :old]
        images, unit = torch.cat([images, shown]), torch.cat([unit, drawn])
        labels = torch.cat([labels, taught.argmax(dim=1)])
    logits = ctx.net(images).logits[:, :seen]
    weights = task_weights(old, seen).to(ctx.device)
    terms = {"classification": Term(weighted_cross_entropy(logits, labels, weights))}
    if taught is not None and options.mu:
        distilled = softmax_distillation(taught, logits[real:, :old], options.temperature)
        terms["distillation"] = Term(distilled, options.mu)
    return {**terms, **vae_terms(ctx, unit, weights[labels])}


def phases(options: Options, setup: Setup) -> tuple[Phase, ...]:
    """Return the one phase, which trains the network and the VAE side by side."""
    optims = {VAE: vae_optim(options, setup.training.optim)}
    groups = (*STUDENT, VAE)
    return (Phase("train", partial(step, options), setup.training, trains=groups, optims=optims),)


def keep(ctx: Context) -> None:
    """Keep the VAE."""
    ctx.keeps.write(VAE, net_arrays(ctx.modules[VAE]))


def adopt(origin: Origin) -> str | None:
    """Accept versions with softmax outputs that keep a VAE."""
    if VAE not in origin.kept_fields:
        return "it draws images of the old classes from a VAE, and none is kept"
    return needs_head("softmax")(origin)


def recipe(options: Options) -> Recipe:
    """Return the recipe of DGR."""
    return Recipe(
        "dgr",
        phases=partial(phases, options),
        fields=(Field(VAE, options.spec, "VAE that draws images of the old classes"),),
        modules=(ModuleSpec(VAE, partial(build_vae, options), lifetime="kept"),),
        teachers=teachers,
        draws=kept_images,
        end=keep,
        adopt=adopt,
        if_diverging="a smaller --lr usually helps, and for the VAE --set vae_lr",
    )


PAPER = (
    "Shin, Lee, Kim and Kim: Continual Learning with Deep Generative Replay, NIPS 2017; as in "
    "Smith, Hsu, Balloch, Shen, Jin and Kira, ICCV 2021"
)
# The released command has no weight decay, for the classifier neither.
_TRAINING = ABD_TRAINING.updated(weight_decay=0.0)
PRESETS: Mapping[str, Preset] = {
    "abd": Preset(_TRAINING, arch="resnet32"),
    "abd-released": Preset(_TRAINING, arch="resnet32", augment=ABD_AUGMENT),
}
