"""Multi-classifier: side classifiers that disagree elsewhere also hold the old classes.

Liu et al. 2020, as in their code, over ``lwf`` or ``mas``. After an increment, side classifiers on
the frozen features learn its classes and to disagree on other images: a folder of images that show
none of the classes, ``--set ood=DIR``. The next increment keeps their answers too (``lwf``), or the
weights that these depend on (``mas``). They never classify: the rule is the host's.
Kept between increments: over ``lwf`` the side classifiers of the last increment; over ``mas``
nothing more, as one number per weight holds the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from edgecil.context import Classes, Context, Setup
from edgecil.data.images import Batch
from edgecil.errors import UsageError
from edgecil.losses.distillation import softmax_distillation
from edgecil.memory.fields import Field
from edgecil.method import ModuleSpec, Phase, Preset, Recipe, Source, Step, Term, Terms
from edgecil.nets.net import Outputs
from edgecil.nets.taps import forward_outputs, freeze
from edgecil.options import option
from edgecil.parts.importance import SENSITIVITY, add, sensitivity
from edgecil.parts.lessons import continues
from edgecil.parts.sides import NEW, OOD, Sides, has_sides, new_sides, side_phase
from edgecil.settings import Optim, Schedule, Training

OLD = "old-sides"
MAS_SHARE = 1.4
"""What the published code multiplies the side classifiers' mean importance by."""

PAPER = (
    "Liu, Parisot, Slabaugh, Jia, Leonardis and Tuytelaars: More Classifiers, Less "
    "Forgetting: A Generic Multi-classifier Paradigm for Incremental Learning, ECCV 2020"
)


@dataclass(frozen=True)
class Options:
    """Options of ``muc``."""

    ood: str = option("", "folder of images that show none of the classes", path=True)
    sides: int = option(3, "side classifiers", low=2, high=16)
    disagreement: float = option(1.0, "weight of their disagreement on those images", low=0.0)
    side_weight: float = option(
        1.0, "weight of what they say, beside the classifier's own answers", low=0.0
    )
    side_epochs: float = option(
        0.4, "epochs of their training, as a part of the increment's", low=0.01, high=10.0
    )


def _taught(classes: Classes) -> bool:
    return has_sides(classes, len(classes.groups) - 2)


def _kept_sides(ctx: Context) -> nn.Module:
    if not _taught(ctx.classes):
        return nn.Module()
    return Sides(*(torch.from_numpy(ctx.kept.read(f"{NEW}.{part}")) for part in ("weight", "bias")))


def taught_step(host: Step, weight: float, temperature: float, ctx: Context, batch: Batch) -> Terms:
    """Return the host's terms and KD_T of the old side classifiers, mean over these.

    No network is asked again. T is the host's, their weight ``weight`` times that of its
    distillation.
    """
    teacher = ctx.teachers["previous"]
    with forward_outputs(ctx.net) as mine, forward_outputs(teacher) as theirs:
        terms = dict(host(ctx, batch))
    with torch.no_grad():
        wanted = ctx.teachers[OLD](theirs[-1].features)
    said = ctx.modules[OLD](mine[-1].features)
    value = softmax_distillation(wanted.flatten(0, 1), said.flatten(0, 1), temperature)
    share = weight * terms["distillation"].weight
    return {**terms, "side distillation": Term(value, share, to=("backbone", OLD))}


def over_lwf(host: Recipe, options: Options) -> Recipe:
    """Return ``host`` with distillation of the side classifiers."""
    parts = {"weight": (options.sides, "C_new", "D"), "bias": (options.sides, "C_new")}
    fields = tuple(
        Field(f"{NEW}.{part}", shape, "side classifiers, which the classifier lacks")
        for part, shape in parts.items()
    )

    temperature = host.temperature
    assert temperature is not None

    def phases(setup: Setup) -> tuple[Phase, ...]:
        found = host.phases(setup)
        if _taught(setup.classes):
            found = tuple(
                replace(p, trains=(*p.trains, OLD), step=partial(
                    taught_step, p.step, options.side_weight, temperature))
                for p in found
            )  # fmt: skip
        return (*found, *side_phase(options.disagreement, options.side_epochs, setup))

    def teachers(ctx: Context) -> dict[str, nn.Module]:
        known = host.teachers(ctx)
        return {**known, OLD: freeze(_kept_sides(ctx)).to(ctx.device)} if known else known

    def end(ctx: Context) -> None:
        host.end(ctx)
        for part in parts:
            values = getattr(ctx.modules[NEW], part).detach()
            ctx.keeps.write(f"{NEW}.{part}", values.cpu().numpy())

    return replace(
        host, phases=phases, teachers=teachers, end=end, fields=(*host.fields, *fields),
        modules=(*host.modules, ModuleSpec(OLD, _kept_sides)), adopt=continues(host, fields),
    )  # fmt: skip


def over_mas(host: Recipe, options: Options) -> Recipe:
    """Return ``host`` with the mean sensitivity of the side classifiers in its importance.

    Two penalties with one anchor and one strength are one penalty with the sum (the published
    code keeps both summands).
    """

    def phases(setup: Setup) -> tuple[Phase, ...]:
        return (*host.phases(setup), *side_phase(options.disagreement, options.side_epochs, setup))

    def end(ctx: Context) -> None:
        host.end(ctx)
        if has_sides(ctx.classes, len(ctx.classes.groups) - 1):
            ctx.modules[NEW].requires_grad_(False)
            for number in range(options.sides):
                found = sensitivity(ctx, ctx.sets["new"], partial(_answer, ctx, number))
                add(ctx, SENSITIVITY, found, MAS_SHARE * options.side_weight / options.sides)

    return replace(host, phases=phases, end=end)


def _answer(ctx: Context, number: int, outputs: Outputs) -> Tensor:
    answer: Tensor = ctx.modules[NEW](outputs.features)[number]
    return answer


HOSTS = {"lwf": over_lwf, "mas": over_mas}


def plug(host: Recipe, options: Options) -> Recipe:
    """Return ``host`` with side classifiers.

    Raises:
        UsageError: the host is none of ``lwf`` and ``mas``.
    """
    if host.name not in HOSTS:
        raise UsageError(
            f"side classifiers cannot be laid over {host.name}", hint="lwf+muc or mas+muc"
        )
    plugged = HOSTS[host.name](host, options)
    return replace(
        plugged,
        modules=(*plugged.modules, ModuleSpec(NEW, partial(new_sides, options.sides))),
        sources=(*plugged.sources, Source(OOD, "ood", options.ood)),
    )


# The published code's 200 epochs, divided by 10 after 120, 160 and 180. It weighs by (1 - a) and
# a = t / (t + 1), the shares of new and old classes where all increments are of one size.
_TRAINING = Training(200, 128, Optim(0.1, 0.9, 5e-4, Schedule("step", (0.6, 0.8, 0.9))))
PRESETS: Mapping[str, Preset] = {
    "muc": Preset(_TRAINING, options={"balance": True}, arch="resnet32-b"),
    # alpha = 0.01 there, for the mean of the squared logits of an increment of 20 classes; here the
    # penalty is for their sum: 0.01 / 20. What is left out: there the logits of old classes have no
    # part in the importance that an increment adds, and that of the classifier itself is doubled
    # instead of added up.
    "muc-mas": Preset(_TRAINING, options={"strength": 5e-4}, arch="resnet32-b"),
}
