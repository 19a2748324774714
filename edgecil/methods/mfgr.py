"""Memory-free generative replay: a generator records old classes, and teaches them again.

MFGR, Xin et al. 2021, section 5. First a generator is trained from the frozen network (knowledge
recording), then the student learns new classes and distils old outputs on real and generated
images (knowledge inheritance). Kept between increments: nothing; the generator goes with the
increment (``warm_start`` keeps it). Laid over a host, it adds generated images: ``icarl+mfgr``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from edgecil.context import Classes, Context, Setup, ce_span
from edgecil.data.images import Batch
from edgecil.errors import UsageError
from edgecil.losses.classification import cross_entropy
from edgecil.losses.distillation import sigmoid_losses, softmax_distillation
from edgecil.method import (
    SOFTMAX_BASE,
    Phase,
    Preset,
    Recipe,
    Step,
    Term,
    Terms,
    needs_head,
    one_phase,
    previous_net,
)
from edgecil.options import option
from edgecil.parts.dreaming import DreamOptions, dream_recipe, source_of
from edgecil.settings import Optim, Training
from edgecil.synthesis.dreams import Dreaming
from edgecil.synthesis.recording import Recording

Slot = Callable[[Context], None]
MOST = 512
"""Generated images of a step where none are asked for: the number in the released code."""


@dataclass(frozen=True)
class RecordingOptions(DreamOptions):
    """How old classes are recorded (eq. (7)) and drawn from; defaults are the paper's weights."""

    synthesis_lr: float = option(1e-2, "Adam's learning rate of the generator", low=0.0, high=10.0)
    content: float = option(1.0, "weight of one-hot predictions, in eq. (4)", low=0.0)
    diversity: float = option(5.0, "lambda_1, weight of even classes, in eq. (4)", low=0.0)
    statistics: float = option(20.0, "lambda_2, weight of batch norms (eq. (5))", low=0.0)
    samples: float = option(0.1, "lambda_3, weight of unlike images (eq. (6))", low=0.0)
    activation: float = option(0.0, "weight of large features (released code: 0.1)", low=0.0)
    prior: float = option(0.0, "weight of smooth images (ABD eq. (6))", low=0.0)
    content_temperature: float = option(
        1.0, "what logits are divided by in the one-hot loss", low=0.01, high=1e6
    )
    ratio: float = option(
        1.0, "generated images per old class over real ones per new class; 512 a step at most",
        low=0.0, high=100.0,
    )  # fmt: skip
    synthetic: int = option(0, "generated images per step, whatever the ratio; 0: by it", low=0)

    @property
    def manner(self) -> Dreaming:
        """How images are made: drawn in train mode (see :func:`generated`)."""
        return replace(super().manner, mode="train")

    def objective(self) -> Recording:
        """Return what is asked of the generator."""
        return Recording(
            self.content, self.diversity, self.statistics, self.prior, self.content_temperature,
            self.entropy, self.samples, self.activation,
        )  # fmt: skip


@dataclass(frozen=True)
class Options(RecordingOptions):
    """Options of ``mfgr``; the rows of the paper's Table 2 are weights of 0 and the switches."""

    kd_synthetic: bool = option(True, "distil on generated images (l_gkd); off: no generator")
    kd_real: bool = option(True, "distil on new images (l_nkd)")
    temperature: float = option(2.0, "T of the softened probabilities", low=0.1, high=100.0)
    balance: Literal["steps", "classes"] = option(
        "steps", "lambda_4: t/(t+1) in incremental step t, or K_o/K", choices=("steps", "classes")
    )
    mixed: bool = option(
        True, "one pass of real and generated images; off: batch norms see them apart (released)"
    )


@dataclass(frozen=True)
class PlugOptions(RecordingOptions):
    """Options of ``mfgr`` as a plug-in."""

    weight: float = option(1.0, "weight of generated images beside the host's own", low=0.0)


def count_of(options: RecordingOptions, classes: Classes, real: int) -> int:
    """Return how many images to generate beside ``real`` new ones: at least 2.

    Section 6.2: as many of each old class as of each new one, but no more than ``MOST``: beside
    one new class after 99 they would be 12,672 for a batch of 128.
    """
    if options.synthetic:
        return max(2, options.synthetic)
    return max(2, min(MOST, round(options.ratio * real * classes.old / classes.new)))


def old_share(options: Options, classes: Classes) -> float:
    """Return lambda_4 of eq. (8), in [0, 1]."""
    if options.balance == "classes":
        return classes.old / classes.seen
    return (classes.increment - 1) / classes.increment


def generated(options: RecordingOptions, ctx: Context, real: int) -> Tensor:
    """Return images ``(N, 3, S, S)`` of old classes to learn beside ``real`` new ones."""
    count = count_of(options, ctx.classes, real)
    if count == MOST and not options.synthetic:
        ctx.note(
            f"old classes want as many generated images each as new ones have: {MOST} are made in "
            "a step at most (--set synthetic=N for another number)"
        )
    # In train mode, as in the released code: a batch then has the moments of normalised images.
    source = source_of(ctx).train()
    with torch.no_grad():
        images: Tensor = source.draw(count, skip=ctx.offset * count // real)
    return images.float().contiguous(memory_format=torch.channels_last)


def step(options: Options, ctx: Context, batch: Batch) -> Terms:
    """Return the terms of eq. (8); the teacher sees only what is distilled, once."""
    span = ce_span(ctx, "new")
    if not ctx.teachers:
        logits = ctx.net(batch.images).logits
        return {"classification": Term(cross_entropy(logits, batch.labels, span))}
    real, old, share = len(batch.labels), ctx.classes.old, old_share(options, ctx.classes)
    parts = [batch.images]
    if options.kd_synthetic:
        parts.append(generated(options, ctx, real))
    images = torch.cat(parts)
    if options.mixed:
        logits = ctx.net(images).logits
    else:
        logits = torch.cat([ctx.net(part).logits for part in parts])
    local = cross_entropy(logits[:real], batch.labels, span)
    terms = {"classification": Term(local, 1 - share)}
    distilled = {}
    if options.kd_real:
        distilled["distillation"] = slice(0, real)
    if options.kd_synthetic:
        distilled["generated distillation"] = slice(real, len(images))
    if distilled:
        first = min(rows.start for rows in distilled.values())
        taught = ctx.teach("previous", images[first:]).logits
        for name, rows in distilled.items():
            same = slice(rows.start - first, rows.stop - first)
            value = softmax_distillation(
                taught[same, :old], logits[rows, :old], options.temperature
            )  # fmt: skip
            terms[name] = Term(value, share)
    return terms


def _of_generator(options: Options) -> list[str]:
    """Return the options of the generator that are neither the default nor a preset's."""
    given = {f.name: getattr(options, f.name) for f in fields(RecordingOptions)}
    return [
        name
        for name, value in given.items()
        if value != getattr(Options, name)
        and all(value != preset.options.get(name) for preset in PRESETS.values())
    ]


def recipe(options: Options) -> Recipe:
    """Return the recipe of MFGR.

    Raises:
        UsageError: options of a generator that there is none of.
    """
    training = partial(step, options)
    if options.kd_synthetic:
        return dream_recipe("mfgr", options, training)
    if unused := _of_generator(options):
        raise UsageError(f"kd_synthetic=false has no generator, and no use for {', '.join(unused)}")
    return Recipe(
        "mfgr", one_phase(training), teachers=previous_net, adopt=needs_head("softmax"),
        base=SOFTMAX_BASE,
    )  # fmt: skip


def plugged(
    options: PlugOptions, temperature: float | None, host: Step, ctx: Context, batch: Batch
) -> Terms:
    """Return the host's terms, and its own kind of distillation on generated images.

    These are a forward pass of their own: the host's batch stays as it is. Each new term weighs
    as the host's term of its kind, times ``weight``. ``temperature`` is that of softmax outputs,
    None where the host has sigmoid ones.
    """
    terms = host(ctx, batch)
    images, old = generated(options, ctx, len(batch.labels)), ctx.classes.old
    taught = ctx.teach("previous", images).logits[:, :old]
    logits = ctx.net(images).logits
    if temperature is not None:
        losses = {"distillation": softmax_distillation(taught, logits[:, :old], temperature)}
    else:
        # iCaRL's loss on images of old classes: no new unit may answer, old ones as the teacher's.
        losses = sigmoid_losses(logits, taught.argmax(dim=1), old, taught)
    own = {
        f"generated {name}": Term(value, options.weight * terms[name].weight)
        for name, value in losses.items()
    }
    return {**terms, **own}


def plug(host: Recipe, options: PlugOptions) -> Recipe:
    """Return ``host`` with a recorded generator whose images its old outputs are distilled on.

    Raises:
        UsageError: the host's outputs or teachers are of another kind, or it has several stages.
    """
    if not _fits(host):
        raise UsageError(
            f"mfgr cannot be laid over {host.name}",
            hint="hosts train once, taught by the last network alone: icarl, lwf, lwf-mc, lwm",
        )
    donor = dream_recipe(host.name, options, _no_step)

    def phases(setup: Setup) -> tuple[Phase, ...]:
        if not setup.classes.old:
            return host.phases(setup)
        (train,) = host.phases(setup)
        recording, _ = donor.phases(setup)
        return recording, replace(
            train, step=partial(plugged, options, host.temperature, train.step)
        )  # fmt: skip

    return replace(
        host, phases=phases, fields=(*host.fields, *donor.fields),
        modules=donor.modules, dreams=donor.dreams, asks_lessons=False,
        begin=_both(host.begin, donor.begin), end=_both(host.end, donor.end),
        forms={head: plug(form, options) for head, form in host.forms.items()},
    )  # fmt: skip


def _fits(host: Recipe) -> bool:
    known = host.head_kind == "sigmoid" or host.temperature is not None
    taught = known and host.teachers is previous_net
    # A stage on images held apart changes what the outputs mean, the teacher's too (BiC).
    apart = host.selection is not None and host.selection.apart is not None
    trial = Setup(Classes((1, 1)), host.training, {"new": 1, "kept": 1})
    return taught and not apart and not host.modules and len(host.phases(trial)) == 1


def _no_step(ctx: Context, batch: Batch) -> Terms:
    raise AssertionError("the host has steps of its own")


def _both(first: Slot, then: Slot) -> Slot:
    def slot(ctx: Context) -> None:
        first(ctx)
        then(ctx)

    return slot


PAPER = (
    "Xin, Zhong, Hou, Wang and Zheng: Memory-Free Generative Replay For Class-Incremental "
    "Learning, 2021"
)
_TRAINING = Training(150, 128, Optim(0.01, 0.9, 5e-4))
PRESETS: Mapping[str, Preset] = {
    # Section 6.2: 500 epochs of 120 steps for the generator, 150 epochs for the classifier. The
    # printed sum over batch norms is a mean in the code, to which lambda_2 = 20 belongs.
    "mfgr": Preset(
        _TRAINING,
        options={"synthesis_steps": 60_000, "synthesis_batch": 512},
        arch="resnet34-3x3",
    ),
    # The released command: no diversity of images, entropy in decimal digits, DAFL's activation
    # loss. Its "total variation" is a mean of signed differences, of which the borders remain: it
    # is left out.
    "mfgr-released": Preset(
        _TRAINING.updated(lr=0.1),
        options={
            "synthesis_steps": 60_000, "synthesis_batch": 512, "samples": 0.0, "activation": 0.1,
            "diversity": 5 / math.log(10), "synthetic": 512, "mixed": False,
        },
        arch="resnet34-3x3",
    ),
}  # fmt: skip
