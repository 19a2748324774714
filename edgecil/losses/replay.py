"""Losses of a student that learns from real new images and from synthetic old ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def padded_distillation(teacher: Tensor, student: Tensor, temperature: float = 2.0) -> Tensor:
    """Return the cross-entropy with a teacher that gives new classes probability 0; a scalar.

    ``teacher`` ``(N, K_o)`` are logits of the old classes, ``student`` ``(N, K)`` of all seen
    ones, the old ones first: its softmax runs over all of them (ABD eq. (9), up to the
    teacher's entropy, which has no gradient). Mean over images.
    """
    soft = torch.softmax(teacher.float() / temperature, dim=1)
    logs = torch.log_softmax(student.float() / temperature, dim=1)[:, : teacher.shape[1]]
    return -(soft * logs).sum(dim=1).mean()


def output_distance(teacher: Tensor, student: Tensor, *, mean: bool = True) -> Tensor:
    """Return the squared distance of logits ``(N, K_o)``, mean over images; a scalar.

    With both from the teacher's linear head it is |W f - W f~|^2 (ABD eq. (13)): features are
    held as far as the old classes depend on them, and the bias cancels. With ``mean`` it is
    divided by K_o.
    """
    squared = (student.float() - teacher.float()).square()
    return squared.mean() if mean else squared.sum(dim=1).mean()


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the softmax cross-entropy, each image's times its class's weight; a scalar.

    ``logits`` ``(N, K)``, ``weights`` ``(K,)`` or longer. The mean over images is not divided by
    the mean weight (ABD's task balancing: K_o / K for old and K_n / K for new classes).
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return (losses * weights[labels]).mean()


def task_weights(old: int, seen: int) -> Tensor:
    """Return K_o / K for old and K_n / K for new classes, ``(K,)`` (ABD's task balancing).

    All 1 where there are no old classes.
    """
    new = seen - old
    return torch.cat([torch.full((old,), old / seen), torch.full((new,), new / seen)])
