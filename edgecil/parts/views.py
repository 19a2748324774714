"""Views of several methods: which old and new images make up an epoch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgecil.context import Context
from edgecil.data.images import ImageSet, concat
from edgecil.nets.taps import freeze
from edgecil.rankings import herding


def half_old(ctx: Context) -> ImageSet:
    """Return the new images and as many draws, with replacement, from the exemplars.

    Only the draws repeat: what is stored stays unique (ABD's code re-drew its store from the
    oversampled pool, and lost half of the distinct images in ten tasks).
    """
    new, kept = ctx.sets["new"], ctx.sets["kept"]
    if not len(kept):
        return new
    draws = torch.randint(len(kept), (len(new),), generator=ctx.stream("oversample"))
    # Beside a set on disk as many copies of exemplars would not fit in memory: rows are enough.
    drawn = kept.rows_of(draws) if new.on_disk else kept.subset(draws.to(kept.labels.device))
    return concat([new, drawn])


TRAINED = "trained"
"""The network as it was when fine-tuning began: a teacher, and the judge of new images."""


def remember_trained(ctx: Context) -> None:
    """Freeze the network as it is now as another teacher."""
    ctx.teachers[TRAINED] = freeze(ctx.net)


def balanced(ctx: Context, rank: Callable[[Tensor, int], Tensor] = herding) -> ImageSet:
    """Return equally many images of every class: exemplars, and the best of the new classes.

    The number is that of the class with the fewest, old exemplars and new images alike; without
    old classes all new images are returned. ``rank(features (N, D), count)`` orders new images
    by the features of the teacher ``trained``, so that a resumed run chooses alike.
    """
    new, kept = ctx.sets["new"], ctx.sets["kept"]
    if not len(kept):
        return new
    labels, rows = new.labels.cpu(), []
    of_each = torch.bincount(torch.cat([kept.labels.cpu(), labels]), minlength=ctx.classes.seen)
    count = int(of_each.min())
    features = ctx.features(new, teacher=TRAINED).cpu()
    for label in range(ctx.classes.old, ctx.classes.seen):
        mine = torch.nonzero(labels == label)[:, 0]
        rows.append(mine[rank(features[mine], count)])
    chosen = torch.cat(rows).to(new.labels.device)
    return concat([new.subset(chosen), kept.subset(first_of_each(kept.labels, count))])


def first_of_each(labels: Tensor, count: int) -> Tensor:
    """Return the positions of the first ``count`` images of every class in ``labels`` ``(N,)``."""
    ranks = torch.zeros_like(labels)
    for label in set(labels.tolist()):
        mine = labels == label
        ranks[mine] = torch.arange(int(mine.sum()), device=labels.device)
    return torch.nonzero(ranks < count)[:, 0]
