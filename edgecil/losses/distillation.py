"""Losses that keep a student's outputs close to a teacher's."""

from __future__ import annotations

import torch
from torch import Tensor

from edgecil.losses.classification import binary_cross_entropy, one_hot


def softmax_distillation(teacher: Tensor, student: Tensor, temperature: float = 2.0) -> Tensor:
    """Return KD_T, the cross-entropy of softened probabilities, mean over images; a scalar.

    ``teacher`` and ``student`` are logits ``(N, K)`` of the same units. The factor T squared is
    left out, as ABD, MFGR and MUC do.
    """
    soft = torch.softmax(teacher.float() / temperature, dim=1)
    return -(soft * torch.log_softmax(student.float() / temperature, dim=1)).sum(dim=1).mean()


def sigmoid_losses(
    logits: Tensor, labels: Tensor, old: int, teacher: Tensor | None
) -> dict[str, Tensor]:
    """Return iCaRL's ``classification`` and ``distillation`` scalars (iCaRL section 3.4).

    ``logits`` ``(N, width)``: units from ``old`` on are taught by the labels (a unit that no
    class uses yet has target 0), the first ``old`` by the sigmoid of the ``teacher``'s logits
    for every image, whatever its label. Sums over units, means over images.
    """
    targets = one_hot(labels, old, logits.shape[1])
    losses = {"classification": binary_cross_entropy(logits[:, old:], targets)}
    if teacher is not None:
        soft = torch.sigmoid(teacher[:, :old].float())
        losses["distillation"] = binary_cross_entropy(logits[:, :old], soft)
    return losses
