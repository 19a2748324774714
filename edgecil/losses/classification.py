"""Classification losses over chosen sets of head units."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, span: slice) -> Tensor:
    """Return the mean softmax cross-entropy over the units of ``span``; a scalar.

    ``logits`` ``(N, width)`` are cut to ``span``; ``labels`` ``(N,)`` are head rows inside it.
    """
    return F.cross_entropy(logits[:, span].float(), labels - (span.start or 0))


def binary_cross_entropy(logits: Tensor, targets: Tensor, where: Tensor | None = None) -> Tensor:
    """Return the two-sided sigmoid cross-entropy: sum over units, mean over images; a scalar.

    ``where`` ``(N, K)`` is 0 where a unit does not count for an image, else 1.
    Both halves are needed: with the printed positive half alone (LwM eq. (1), M2KD eqs.
    (1)-(3)) nothing would ever push a logit down.
    """
    per_unit = F.binary_cross_entropy_with_logits(logits.float(), targets, where, reduction="none")
    return per_unit.sum(dim=1).mean()


def one_hot(labels: Tensor, start: int, stop: int) -> Tensor:
    """Return float32 ``(N, stop - start)`` with a one where the label is, zero rows elsewhere."""
    units = torch.arange(start, stop, device=labels.device)
    return (labels[:, None] == units[None, :]).float()
