"""Every earlier network as a teacher: multi-model distillation, and what it keeps (M2KD).

A snapshot answers for the classes that its increment learned. It is defined as what decodes
from the stored bytes: convolution weights, shared with the classifier by labels that say which
increment owns each (or kept whole, without pruning); batch norms folded to scale and shift; and
those rows of the heads that teach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edgecil.context import Context, Setup
from edgecil.errors import UsageError
from edgecil.memory.fields import Field
from edgecil.method import ModuleSpec, Phase, Recipe
from edgecil.nets.arithmetic import full_precision
from edgecil.nets.folding import conv_weights, folded, put_folded
from edgecil.nets.heads import LinearHead
from edgecil.nets.net import Net, pooled
from edgecil.nets.taps import freeze
from edgecil.parts.lessons import Lesson, check_host, continues
from edgecil.parts.ownership import (
    LABELS,
    build_owners,
    check_room,
    free_weights,
    own_weights,
    owner_arrays,
    prune,
)
from edgecil.parts.pruning import as_of
from edgecil.settings import Training

STAGE = 1
"""Index of the stage that the auxiliary head looks at: the second (M2KD section 4.2)."""
TOLERANCE = 0.05
"""How far float16 may move a logit of a snapshot; a target sigma(z) then moves by 0.0125."""

WEIGHTS, FOLDED = "snapshots.weights", "snapshots.folded"
Arrays = Mapping[str, Tensor]


class Snapshot(nn.Module):
    """A frozen trunk with those rows of the heads that teach; calling it returns a lesson.

    ``rows`` are ``head.weight`` ``(n, D)`` and ``head.bias`` ``(n,)``, and where there is an
    auxiliary head the same of ``auxiliary``.
    """

    def __init__(self, net: Net, rows: Arrays) -> None:
        super().__init__()
        self.backbone = freeze(net.backbone)
        for name, value in rows.items():
            self.register_buffer(name.replace(".", "_"), value.detach().clone())
        self.sided = "auxiliary.weight" in rows
        self.eval()

    def _logits(self, head: str, stage: Tensor) -> Tensor:
        features = pooled(stage)
        with full_precision(features):
            weight, bias = getattr(self, f"{head}_weight"), getattr(self, f"{head}_bias")
            return F.linear(features, weight, bias)

    def forward(self, images: Tensor) -> Lesson:
        """Return the logits of the classes it teaches for images ``(N, 3, S, S)``."""
        stages = self.backbone(images)
        side = self._logits("auxiliary", stages[STAGE]) if self.sided else None
        return Lesson(self._logits("head", stages[-1]), side)


class Snapshots(nn.Module):
    """Several snapshots as one teacher: each answers for its own classes, in order (eq. (2))."""

    def __init__(self, members: Sequence[Snapshot]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.eval()

    def forward(self, images: Tensor) -> Lesson:
        """Return the logits of all old classes for images ``(N, 3, S, S)``."""
        lessons = [member(images) for member in self.members]
        logits = torch.cat([lesson.logits for lesson in lessons], dim=1)
        sides = [lesson.auxiliary for lesson in lessons if lesson.auxiliary is not None]
        return Lesson(logits, torch.cat(sides, dim=1) if sides else None)


@dataclass(frozen=True)
class History:
    """Which snapshots are kept, and how.

    ``pruning`` is the part of the free weights that every increment leaves free; 0 prunes
    nothing and keeps snapshots whole. The ``skip`` oldest ones are dropped, and the oldest
    that is kept teaches their classes.
    """

    pruning: float
    skip: int = 0
    auxiliary: bool = False
    """Whether there is an auxiliary head, whose rows are kept too."""
    finetune_lr: float = 1.0
    """Learning rate of the fine-tuning after pruning, as a part of the training's."""
    decay_base_only: bool = False
    """Weight decay in the first increment only."""

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the arrays of head rows."""
        heads = ("head", "auxiliary") if self.auxiliary else ("head",)
        return tuple(f"{head}.{part}" for head in heads for part in ("weight", "bias"))

    def fields(self) -> tuple[Field, ...]:
        """Return the declaration of all that is kept."""
        first = self.skip + 1
        trunk = Field(
            LABELS, "conv-weights", "which increment owns each weight", "U8",
            f"labels-{self.pruning:g}",
        ) if self.pruning else Field(
            WEIGHTS, "conv-weights", "weights of every snapshot but the newest",
            per_increment=True, first=first, newest=False,
        )  # fmt: skip
        norms = Field(
            FOLDED, "folded", "scale and shift of every snapshot", codec="narrow",
            per_increment=True, first=first,
        )  # fmt: skip
        return (trunk, norms, *(self._rows_field(name) for name in self.rows))

    @staticmethod
    def _rows_field(name: str) -> Field:
        head, part = name.split(".")
        width = {"head": "D", "auxiliary": "D_2"}[head]
        shape = ("C", width) if part == "weight" else ("C",)
        return Field(row_field(name), shape, f"{head} rows that teach", "F16")

    def goes_on(self, increment: int) -> bool:
        """Return whether snapshots before ``increment`` are kept beside it."""
        return increment > self.skip + 1


def row_field(name: str) -> str:
    """Return the field that keeps rows such as ``head.weight``."""
    return f"snapshots.{name}"


def _tensors(ctx: Context, arrays: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(array).to(ctx.device) for name, array in arrays.items()}


def _rebuild(net: Net, weights: Arrays, norms: Arrays, rows: Arrays) -> Snapshot:
    snapshot = Snapshot(net, rows)
    # Names begin with "backbone.", which a snapshot has too.
    with torch.no_grad():
        for name, parameter in conv_weights(snapshot).items():
            parameter.copy_(weights[name])
    put_folded(snapshot, norms)
    return snapshot


def _old_weights(history: History, ctx: Context, increment: int) -> dict[str, Tensor]:
    """Return the convolution weights of a snapshot from the network before and what is kept."""
    assert ctx.previous is not None
    weights = conv_weights(ctx.previous)
    if history.pruning:
        labels = _tensors(ctx, ctx.kept.read(LABELS))
        return {name: as_of(weight, labels[name], increment) for name, weight in weights.items()}
    if increment == ctx.classes.increment - 1:
        return weights
    return _tensors(ctx, ctx.kept.read(WEIGHTS, increment))


def teachers(history: History, ctx: Context) -> dict[str, nn.Module]:
    """Return all kept snapshots as the one teacher ``previous``; none at the base."""
    if ctx.previous is None:
        return {}
    rows = {
        name: torch.from_numpy(ctx.kept.read(row_field(name))).float().to(ctx.device)
        for name in history.rows
    }
    members, start = [], 0
    for increment in ctx.kept.increments(FOLDED):
        stop = ctx.classes.spans[increment - 1].stop
        members.append(
            _rebuild(
                ctx.previous,
                _old_weights(history, ctx, increment),
                _tensors(ctx, ctx.kept.read(FOLDED, increment)),
                {name: values[start:stop] for name, values in rows.items()},
            )
        )
        start = stop
    return {"previous": Snapshots(members)}


def _short(values: Arrays) -> dict[str, Tensor]:
    return {name: value.half().float() for name, value in values.items()}


def _settled(ctx: Context, norms: Arrays, rows: Arrays) -> Arrays:
    """Return the norms, rounded to float16 where the snapshot's logits stay within tolerance.

    The rows are rounded in any case: 2^-11 of what is summed up in a logit is little.
    """
    weights = conv_weights(ctx.net)
    images = next(iter(ctx.loader(ctx.sets["new"])))
    exact = _rebuild(ctx.net, weights, norms, rows)(images)
    rounded = _rebuild(ctx.net, weights, _short(norms), _short(rows))(images)
    pairs = [(a, b) for a, b in zip(exact, rounded, strict=True) if a is not None]
    moved = max(float((a - b).abs().max()) for a, b in pairs)
    if moved <= TOLERANCE:
        return _short(norms)
    ctx.note(
        f"batch norms of snapshot {ctx.classes.increment} are kept in float32: in float16 a logit "
        f"would move by {moved:.2f}, more than {TOLERANCE}"
    )
    return norms


@torch.no_grad()
def keep(history: History, ctx: Context) -> None:
    """Write the snapshot of this increment, and the earlier ones again."""
    increment, goes_on = ctx.classes.increment, history.goes_on(ctx.classes.increment)
    own = slice(ctx.classes.old if goes_on else 0, ctx.classes.seen)
    heads = {"head": ctx.net.head, "auxiliary": ctx.modules.get("auxiliary")}
    rows: dict[str, Tensor] = {}
    for name in history.rows:
        head, part = name.split(".")
        rows[name] = getattr(heads[head], part)[own].detach()
    if goes_on:
        ctx.keeps.copy(FOLDED, ctx.kept)
    ctx.keeps.write(FOLDED, _arrays(_settled(ctx, folded(ctx.net), rows)), increment)
    for name, values in _arrays(rows).items():
        before = [ctx.kept.read(row_field(name))] if goes_on else []
        ctx.keeps.write(row_field(name), np.concatenate([*before, values.astype(np.float16)]))
    if history.pruning:
        ctx.keeps.write(LABELS, owner_arrays(ctx))
    elif goes_on:
        assert ctx.previous is not None
        if WEIGHTS in ctx.kept:
            ctx.keeps.copy(WEIGHTS, ctx.kept)
        ctx.keeps.write(WEIGHTS, _arrays(conv_weights(ctx.previous)), increment - 1)


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    # In C order: weights in channels_last would be flattened in another one.
    return {name: value.detach().cpu().contiguous().numpy() for name, value in tensors.items()}


def check_rows(ctx: Context, part: str) -> None:
    """Do nothing for a network whose head is all rows, one per class.

    Raises:
        UsageError: there is a hidden layer below them, which ``part`` does not keep.
    """
    if not isinstance(ctx.net.head, LinearHead):
        raise UsageError(
            f"{part} keeps the rows of a linear head, this network's is "
            f"{type(ctx.net.head).__name__}",
            hint="--arch resnet32 or another residual network",
        )


def _check(history: History, ctx: Context) -> None:
    """Refuse a network that cannot be kept, or that has no weights left to learn with.

    Raises:
        UsageError: the head is not a linear one.
        TrainingError: a layer has no free weight left.
    """
    check_rows(ctx, "multi-model distillation")
    if history.pruning:
        check_room(ctx, history.pruning)


def add_snapshots(host: Recipe, history: History) -> Recipe:
    """Return ``host`` with all earlier snapshots as its teacher.

    Raises:
        UsageError: the host asks its teacher for more than logits.
    """
    check_host(host, "multi-model distillation")

    def begin(ctx: Context) -> None:
        host.begin(ctx)
        _check(history, ctx)

    def end(ctx: Context) -> None:
        host.end(ctx)
        keep(history, ctx)

    modules = (ModuleSpec("owners", build_owners),) if history.pruning else ()
    return replace(
        host,
        fields=(*host.fields, *history.fields()),
        modules=(*host.modules, *modules),
        phases=partial(_phases, history, host),
        teachers=partial(teachers, history),
        asks_lessons=False,
        begin=begin,
        end=end,
        adopt=continues(host, history.fields()),
    )


def _phases(history: History, host: Recipe, setup: Setup) -> tuple[Phase, ...]:
    """Return the host's phases on free weights, and fine-tuning of what pruning left (4.2)."""
    later = setup.classes.increment > 1
    phases = host.phases(setup)
    if history.decay_base_only and later:
        phases = tuple(replace(p, training=p.training.updated(weight_decay=0.0)) for p in phases)
    if not history.pruning:
        return phases
    # At the base all weights are free.
    masks = free_weights if later else None
    fine_tuning = replace(
        phases[-1], name="fine-tune", prepare=partial(prune, history.pruning), part=0.5,
        training=_gentle(phases[-1].training, history.finetune_lr),
        masks=own_weights,
    )  # fmt: skip
    return (*(replace(p, masks=masks) for p in phases), fine_tuning)


def _gentle(training: Training, part: float) -> Training:
    """Return the training at ``part`` of its learning rate, without further steps down."""
    optim = training.optim
    schedule = replace(optim.schedule, milestones=())
    return replace(training, optim=replace(optim, lr=part * optim.lr, schedule=schedule))
