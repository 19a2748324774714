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
from edgecil.parts.dreaming import dream_recipe
from edgecil.parts.recorded import RecordingOptions, advised, generated
from edgecil.settings import Optim, Training

Slot = Callable[[Context], None]
Phases = Callable[[Setup], tuple[Phase, ...]]


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


def old_share(options: Options, classes: Classes) -> float:
    """Return lambda_4 of eq. (8), in [0, 1]. Its t counts increments that brought classes."""
    if options.balance == "classes":
        return classes.old / classes.seen
    steps = sum(group > 0 for group in classes.groups)
    return (steps - 1) / steps


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
    """Return the options of the generator that somebody set: those of a whole preset may be."""
    names = [f.name for f in fields(RecordingOptions)]
    given = {(name, getattr(options, name)) for name in names}
    given -= {(name, getattr(Options, name)) for name in names}
    presets = [
        {(name, value) for name, value in preset.options.items() if name in names}
        for preset in PRESETS.values()
    ]
    whole = [own for own in presets if dict(own).keys() <= dict(given).keys()]
    rest = min((given - own for own in (set(), *whole)), key=len)
    return [name for name in names if name in dict(rest)]


def _phases(options: Options, dreaming: Phases, setup: Setup) -> tuple[Phase, ...]:
    *recording, train = dreaming(setup)
    return (*recording, advised(options, train, setup)) if recording else (train,)


def recipe(options: Options) -> Recipe:
    """Return the recipe of MFGR.

    Raises:
        UsageError: options of a generator that there is none of.
    """
    training = partial(step, options)
    if options.kd_synthetic:
        recipe = dream_recipe("mfgr", options, training)
        return replace(recipe, phases=partial(_phases, options, recipe.phases))
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
        UsageError: the host's outputs or teachers are of another kind, it has several stages, or
            nothing is asked of generated images.
    """
    if not _fits(host):
        raise UsageError(
            f"mfgr cannot be laid over {host.name}",
            hint="hosts train once, taught by the last network alone: icarl, lwf, lwf-coreset, "
            "lwf-mc, lwm",
        )
    if not options.weight:
        raise UsageError("weight=0: nothing would be learned from generated images")
    donor = dream_recipe(host.name, options, _no_step)

    def phases(setup: Setup) -> tuple[Phase, ...]:
        if not setup.classes.old:
            return host.phases(setup)
        (train,) = host.phases(setup)
        recording, _ = donor.phases(setup)
        learning = partial(plugged, options, host.temperature, train.step)
        return recording, advised(options, replace(train, step=learning), setup)

    return replace(
        host, phases=phases, fields=(*host.fields, *donor.fields),
        modules=donor.modules, dreams=donor.dreams, asks_lessons=False,
        begin=_both(host.begin, donor.begin), end=_both(host.end, donor.end),
        if_diverging=donor.if_diverging,
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
    # Section 6.2: 500 epochs of 120 steps for the generator, 150 epochs for the classifier, and
    # as many images of an old class as of a new one, however many that makes. The printed sum
    # over batch norms is a mean in the code, to which lambda_2 = 20 belongs.
    "mfgr": Preset(
        _TRAINING,
        options={"synthesis_steps": 60_000, "synthesis_batch": 512, "most": 0},
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
