"""Losses that keep a student's outputs close to a teacher's."""

from __future__ import annotations

from collections.abc import Sequence

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
    logits: Tensor,
    labels: Tensor,
    old: int,
    teacher: Tensor | None,
    updated: Sequence[int] = (),
) -> dict[str, Tensor]:
    """Return iCaRL's ``classification`` and ``distillation`` scalars (iCaRL section 3.4).

    ``logits`` ``(N, width)``: units from ``old`` on are taught by the labels (a unit that no
    class uses yet has target 0), the first ``old`` by the sigmoid of the ``teacher``'s logits
    for every image, whatever its label. Sums over units, means over images.

    ``updated`` are the old classes with new images. Of an image of such a class its own unit is
    taught by the label, as a part of the classification: the teacher's doubts are what the new
    images are there to remove. Its other old units are taught by the teacher, as ever.
    """
    targets = one_hot(labels, old, logits.shape[1])
    losses = {"classification": binary_cross_entropy(logits[:, old:], targets)}
    others = None
    if updated:
        rows = torch.zeros(old, device=labels.device)
        rows[list(updated)] = 1.0
        own = one_hot(labels, 0, old) * rows
        losses["classification"] += binary_cross_entropy(logits[:, :old], own, own)
        others = 1 - own
    if teacher is not None:
        soft = torch.sigmoid(teacher[:, :old].float())
        losses["distillation"] = binary_cross_entropy(logits[:, :old], soft, others)
    return losses


def auxiliary_losses(
    logits: Tensor, labels: Tensor, old: int, teacher: Tensor | None
) -> dict[str, Tensor]:
    """Return M2KD's ``auxiliary classification`` and ``auxiliary distillation`` (eq. (3)).

    ``logits`` ``(N, width)`` are those of the side head. As :func:`sigmoid_losses`, but the
    ground truth reaches all units, so that the old ones have two targets that add up. The
    factor alpha of the classification is left out.
    """
    truth = one_hot(labels, 0, logits.shape[1])
    losses = {"auxiliary classification": binary_cross_entropy(logits, truth)}
    if teacher is not None:
        soft = torch.sigmoid(teacher[:, :old].float())
        losses["auxiliary distillation"] = binary_cross_entropy(logits[:, :old], soft)
    return losses
