"""Losses of LUCIR on unit vectors (Hou et al. 2019, section 3.2 to 3.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def less_forget(teacher: Tensor, student: Tensor) -> Tensor:
    """Return 1 - cos(f~, f), mean over images; a scalar (LUCIR eq. (6)).

    ``teacher`` and ``student`` are features ``(N, D)``.
    """
    return 1 - F.cosine_similarity(teacher.float(), student.float()).mean()


def less_forget_weight(base: float, old: int, new: int) -> float:
    """Return lambda = base sqrt(K_o / K_n): it grows with what there is to forget (eq. (7))."""
    return base * math.sqrt(old / new)


def margin_ranking(
    cosines: Tensor, labels: Tensor, old: int, margin: float = 0.5, hardest: int = 2
) -> Tensor:
    """Return the mean of max(0, m - cos(f, w_y) + cos(f, w_k)) over images of old classes.

    ``cosines`` ``(N, K)`` are unscaled; k runs over the ``hardest`` new classes, those with the
    largest cosines (LUCIR eq. (8)). Zero, with a gradient of zero, without such images.
    """
    is_old = (labels < old).float()
    own = cosines.gather(1, labels[:, None])
    rivals = cosines[:, old:].topk(min(hardest, cosines.shape[1] - old), dim=1).values
    hinge = (margin - own + rivals).clamp_min(0).mean(dim=1)
    return (hinge * is_old).sum() / is_old.sum().clamp_min(1)


def imprinted(features: Tensor, labels: Tensor, classes: range, rows: Tensor) -> Tensor:
    """Return rows ``(len(classes), D)`` for new classes: their mean directions.

    Normalised means of normalised ``features`` ``(N, D)``, as long as the old ``rows`` are on
    average (unit length without any).
    """
    unit = F.normalize(features)
    means = torch.stack([unit[labels == label].mean(dim=0) for label in classes])
    length = rows.norm(dim=1).mean() if len(rows) else torch.ones((), device=means.device)
    return F.normalize(means) * length
