"""LwF's two terms, over new images alone or exemplars as well."""

from __future__ import annotations

from edgecil.context import Context, ce_span
from edgecil.data.images import Batch
from edgecil.losses.classification import cross_entropy
from edgecil.losses.distillation import softmax_distillation
from edgecil.method import Term, Terms


def softened_terms(
    ctx: Context, batch: Batch, scope: str, temperature: float, ce_weight: float, kd_weight: float
) -> Terms:
    """Return the cross-entropy of ``scope`` and KD_T over the old units of the previous network."""
    logits = ctx.net(batch.images).logits
    loss = cross_entropy(logits, batch.labels, ce_span(ctx, scope))
    terms = {"classification": Term(loss, ce_weight)}
    if ctx.teachers:
        old = ctx.classes.old
        teacher = ctx.teach("previous", batch.images).logits
        distilled = softmax_distillation(teacher[:, :old], logits[:, :old], temperature)
        terms["distillation"] = Term(distilled, kd_weight)
    return terms
