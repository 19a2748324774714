"""Side classifiers of the same features, trained to agree on the new images and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import combinations

import torch
from torch import Tensor, nn

from edgecil.context import Classes, Context, Setup
from edgecil.data.images import Batch
from edgecil.method import Phase, Term, Terms
from edgecil.nets.arithmetic import full_precision
from edgecil.settings import Schedule, Training

OOD, NEW = "ood", "sides"
SCHEDULE = Schedule("step", (40 / 80, 60 / 80, 70 / 80))


class Sides(nn.Module):
    """Several linear classifiers of the same features; begins like as many ``nn.Linear``."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(sides, N, C)`` of features ``(N, D)``."""
        with full_precision(features):
            rows = self.weight.transpose(1, 2)
            return features.to(self.weight.dtype) @ rows + self.bias[:, None]


def disagreement(logits: Tensor) -> Tensor:
    """Return sum_{i<j} of the mean of |p_i - p_j| over images and classes; a scalar.

    ``logits`` ``(sides, N, C)``, p their softmax.
    """
    shares = torch.softmax(logits.float(), dim=2)
    pairs = combinations(shares.unbind(), 2)
    return torch.stack([(a - b).abs().mean() for a, b in pairs]).sum()


def has_sides(classes: Classes, increment: int) -> bool:
    """Return whether an increment (0: the base) trains side classifiers.

    A softmax over one class says nothing, and a single class needs none.
    """
    return 0 <= increment < len(classes.groups) and classes.groups[increment] > 1


def new_sides(count: int, ctx: Context) -> Sides:
    """Return ``count`` fresh classifiers of the new classes."""
    shape, bound = (count, ctx.classes.new, ctx.net.feature_dim), ctx.net.feature_dim**-0.5
    draws = torch.rand((shape[0], shape[1], shape[2] + 1), generator=ctx.stream(NEW))
    drawn = (2 * draws - 1) * bound
    return Sides(drawn[..., :-1].contiguous(), drawn[..., -1].contiguous())


def elsewhere(ctx: Context, count: int) -> Tensor:
    """Return features ``(count, D)`` of images drawn from the other ones, for this rank's slice.

    The network is frozen and these images are not changed: all features are computed once.
    """
    if OOD not in ctx.by_view:
        ctx.by_view[OOD] = ctx.features(ctx.sets[OOD])
    known = ctx.by_view[OOD]
    draws, generator = ctx.offset + count, ctx.stream(f"{OOD}-{ctx.step}")
    rows = torch.randint(len(known), (draws,), generator=generator)[ctx.offset :]
    return known.index_select(0, rows.to(known.device))


def side_step(weight: float, ctx: Context, batch: Batch) -> Terms:
    """Return the side classifiers' cross-entropies on new images, less their disagreement.

    ``weight`` is that of the disagreement.
    """
    sides = ctx.modules[NEW]
    with torch.no_grad():
        features = ctx.net(batch.images).features
    logits = sides(features).float()
    labels = (batch.labels - ctx.classes.old).expand(len(logits), -1)
    value = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    apart = disagreement(sides(elsewhere(ctx, len(batch.labels))))
    return {
        "side classification": Term(value, len(logits), to=(NEW,)),
        "disagreement": Term(apart, -weight, to=(NEW,)),
    }


def side_phase(weight: float, part: float, setup: Setup) -> tuple[Phase, ...]:
    """Return the training of the side classifiers on frozen features, where there is one.

    ``weight`` is that of their disagreement, ``part`` the part of the increment's epochs.
    """
    if not has_sides(setup.classes, len(setup.classes.groups) - 1):
        return ()
    optim = replace(setup.training.optim, schedule=SCHEDULE)
    training: Training = replace(setup.training, optim=optim)
    return (
        Phase("side classifiers", partial(side_step, weight), training, trains=(NEW,), mode="eval",
              part=part),
    )  # fmt: skip
