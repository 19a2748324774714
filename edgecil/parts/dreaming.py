"""What data-free methods share: a phase that trains a source of images, and drawing from it.

The source is built fresh in every increment from the network learned before it, and goes with
the increment: nothing is kept. A warm start keeps the generator, in a declared field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgecil.context import Context, Setup
from edgecil.data.images import Batch
from edgecil.errors import UsageError
from edgecil.memory.fields import Field
from edgecil.method import (
    SOFTMAX_BASE,
    ModuleSpec,
    Phase,
    Recipe,
    Step,
    Term,
    Terms,
    needs_head,
    previous_net,
)
from edgecil.nets.build import load_arrays, net_arrays
from edgecil.options import option
from edgecil.settings import Optim, Schedule, Training
from edgecil.synthesis import training as synthesis
from edgecil.synthesis.dreams import RATES, Dreaming
from edgecil.synthesis.generator import Generator, generator_shapes
from edgecil.synthesis.objective import Inversion
from edgecil.synthesis.pixels import Pixels
from edgecil.synthesis.statistics import check_statistics

SOURCE = "generator"
"""Name of the module, of the group that a phase trains, and of the field of a warm start."""
PHASE = "synthesis"
POOL = 8
"""Batches of images that direct optimisation makes."""
RELEASED: Mapping[str, Any] = {
    "synthesis_steps": 10_000, "entropy": "share", "warm_start": True,
}  # fmt: skip
"""Options of the synthesis in ABD's released code, which its baselines share."""
COLLAPSED = (
    "--set synthesis_steps=N for more steps, --set diversity=N for a larger weight, or "
    "--set collapse=accept"
)
FIELD = Field(SOURCE, generator_shapes, "generator of old images, trained on in the next increment")


@dataclass(frozen=True)
class DreamOptions:
    """Options of methods that synthesise images by ABD eq. (7); defaults are the paper's."""

    source: Literal["generator", "pixels"] = option(
        "generator", "train a generator, or eight batches of pixels themselves",
        choices=("generator", "pixels"),
    )  # fmt: skip
    synthesis_steps: int = option(
        5000, "steps of the generator, or of every batch of pixels", low=1
    )
    synthesis_lr: float = option(
        0.0, "Adam's learning rate in them; 0: 0.001 for a generator, 0.05 for pixels",
        low=0.0, high=10.0,
    )  # fmt: skip
    synthesis_batch: int = option(0, "images per step of it; 0: the batch size", low=0)
    content: float = option(1.0, "weight of confident predictions (eq. (2))", low=0.0)
    diversity: float = option(1.0, "weight of even class frequencies (eq. (1))", low=0.0)
    statistics: float = option(50.0, "weight of batch-norm statistics (eq. (4))", low=0.0)
    prior: float = option(1e-3, "weight of smooth images (eq. (6))", low=0.0)
    content_temperature: float = option(
        1000.0, "what logits are divided by in eq. (2)", low=0.01, high=1e6
    )
    entropy: Literal["nats", "share"] = option(
        "nats", "unit of the diversity: as printed, or divided by log K_o (ABD's code)",
        choices=("nats", "share"),
    )  # fmt: skip
    warm_start: bool = option(
        False, "keep the generator and go on from it (ABD's code); costs kept bytes"
    )
    collapse: Literal["retry", "accept"] = option(
        "retry", "when all images show one class: other seeds, then fail; or go on",
        choices=("retry", "accept"),
    )  # fmt: skip

    @property
    def rate(self) -> float:
        """Adam's learning rate in the synthesis."""
        return self.synthesis_lr or RATES[self.source]

    @property
    def manner(self) -> Dreaming:
        """How images are made, in one value."""
        return Dreaming(
            self.source, self.synthesis_steps, self.rate, self.synthesis_batch, self.objective(),
            varied=self.collapse == "retry",
        )  # fmt: skip

    def objective(self) -> Inversion:
        """Return what is asked of the images."""
        return Inversion(
            self.content, self.diversity, self.statistics, self.prior,
            self.content_temperature, self.entropy,
        )  # fmt: skip


def batch_of(options: DreamOptions, setup: Setup) -> int:
    """Return the images of one step of synthesis."""
    return options.synthesis_batch or setup.training.batch_size


def _new_source(options: DreamOptions, ctx: Context, seed: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ctx.stream(seed).initial_seed())
        if options.source == "generator":
            return Generator(ctx.preprocess.size)
        batch = batch_of(options, ctx.setup)
        return Pixels(ctx.preprocess, POOL * batch, batch, options.synthesis_steps)


def build_source(options: DreamOptions, ctx: Context) -> nn.Module:
    """Return the untrained source, or the kept one; empty where there is nothing to dream of."""
    if not ctx.classes.old and not options.warm_start:
        return nn.Module()
    source = _new_source(options, ctx, SOURCE)
    if options.warm_start and SOURCE in ctx.kept:
        load_arrays(source, ctx.kept.read(SOURCE))
    return source


def source_of(ctx: Context) -> Any:
    """Return the module that makes images, a :class:`~edgecil.synthesis.training.Source`."""
    return ctx.modules[SOURCE]


def draw(ctx: Context, count: int) -> Tensor:
    """Return ``count`` synthetic images ``(N, 3, S, S)`` from the trained source in eval mode."""
    source = source_of(ctx).eval()
    with torch.no_grad():
        images: Tensor = source.draw(count, skip=ctx.offset)
    return images.float().contiguous(memory_format=torch.channels_last)


def with_drawn(ctx: Context, images: Tensor) -> Tensor:
    """Return ``images`` ``(N, 3, S, S)`` and as many synthetic ones after them: one forward."""
    return torch.cat([images, draw(ctx, len(images))])


def synthesis_step(
    objective: synthesis.Objective, count: int, ctx: Context, batch: Batch | None
) -> Terms:
    """Return the losses of ``count`` synthetic images, all of which train the source."""
    if ctx.classes.old == 1:
        ctx.note("one old class: the diversity of synthetic images is not defined, and left out")
    losses = synthesis.dream(
        source_of(ctx), ctx.teachers["previous"], objective, ctx.classes.old, count, ctx.step
    )
    return {name: Term(loss.value, loss.weight, (SOURCE,)) for name, loss in losses.items()}


def once_more(options: DreamOptions, ctx: Context, attempt: int) -> bool:
    """Return whether the trained source shows one class alone; it then is a new one, untrained.

    Raises:
        TrainingError: it was the last attempt.
    """
    source, teacher, old = source_of(ctx), ctx.teachers["previous"], ctx.classes.old
    manner = options.manner
    if not manner.varied or old == 1:
        return False
    torch.manual_seed(ctx.stream("variety").initial_seed())
    source.train(manner.mode == "train")
    found = synthesis.shown(source, teacher, old, batch_of(options, ctx.setup))
    if not synthesis.wants_another(ctx.agree(found), attempt, ctx.note, COLLAPSED):
        return False
    fresh = _new_source(options, ctx, f"{SOURCE}-{attempt + 1}")
    source.load_state_dict(fresh.state_dict())
    return True


def dream_phases(
    options: DreamOptions, objective: synthesis.Objective, step: Step, setup: Setup
) -> tuple[Phase, ...]:
    """Return synthesis and then training by ``step``; at the base increment training alone."""
    train = Phase("train", step, setup.training)
    if not setup.classes.old:
        return (train,)
    steps = options.synthesis_steps * (POOL if options.source == "pixels" else 1)
    optim = Optim(options.rate, 0.0, 0.0, Schedule("constant"), "adam")
    count = batch_of(options, setup)
    training = Training(batch_size=count, optim=optim)
    dreaming = partial(synthesis_step, objective, count)
    return (
        Phase(
            PHASE, dreaming, training, None, steps, (SOURCE,), mode="eval",
            smaller="--set synthesis_batch={}", again=partial(once_more, options),
        ),
        train,
    )  # fmt: skip


def begin(ctx: Context) -> None:
    """Refuse a network that images cannot be synthesised from."""
    if ctx.previous is not None:
        check_statistics(ctx.previous)


def _keep(ctx: Context) -> None:
    ctx.keeps.write(SOURCE, net_arrays(source_of(ctx)))


def dream_recipe(
    name: str, options: DreamOptions, step: Step, base: str | None = SOFTMAX_BASE
) -> Recipe:
    """Return the recipe of a method that trains by ``step`` after synthesising images.

    ``base`` is that of :class:`~edgecil.method.Recipe`: by default its base increment is trained
    by softmax cross-entropy alone.

    Raises:
        UsageError: a warm start of what is no generator, or nothing that is asked of images.
    """
    objective = options.objective()
    if not any(objective.of_each.values()):
        *others, last = objective.of_each
        raise UsageError(
            f"{', '.join(others)} and {last} are all 0: nothing is asked of a synthetic image "
            "by itself"
        )
    if options.warm_start and options.source != "generator":
        raise UsageError("warm_start keeps a generator, and source=pixels has none")
    slots: dict[str, Any] = {"fields": (FIELD,), "end": _keep} if options.warm_start else {}
    return Recipe(
        name,
        phases=partial(dream_phases, options, objective, step),
        modules=(ModuleSpec(SOURCE, partial(build_source, options)),),
        teachers=previous_net,
        dreams=options.manner,
        begin=begin,
        adopt=needs_head("softmax"),
        base=base,
        if_diverging="a smaller --lr usually helps, and in the synthesis --set synthesis_lr",
        **slots,
    )
