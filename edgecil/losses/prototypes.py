"""Classes stand where the mean of a few of their images lies: the loss on these means."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def class_sums(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the sums ``(C, D)`` of the ``features`` ``(N, D)`` of each class, and their numbers.

    The numbers are float ``(C, 1)``; a class without images has zeros. Differentiable.
    """
    members = F.one_hot(labels, classes).to(features.dtype)
    return members.T @ features, members.sum(dim=0)[:, None]


def class_prototypes(features: Tensor, labels: Tensor, fixed: Tensor) -> Tensor:
    """Return means ``(C, D)``: of ``features`` ``(N, D)`` where a class has any, else ``fixed``."""
    sums, counts = class_sums(features, labels, len(fixed))
    return torch.where(counts > 0, sums / counts.clamp_min(1), fixed)


def prototype_logits(features: Tensor, prototypes: Tensor) -> Tensor:
    """Return the cosines ``(N, C)`` of ``features`` ``(N, D)`` and ``prototypes`` ``(C, D)``.

    They are not scaled: the released code of Mnemonics takes their softmax as they are.
    """
    return F.normalize(features) @ F.normalize(prototypes).T
