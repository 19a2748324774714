"""Learning without memorizing: distils what the network looks at, not only what it says.

LwF-MC's loss plus attention distillation (LwM section 4): for every new image, the Grad-CAM
map of the student's best *old* class must point where the previous network's map for the same
class points. Kept between increments: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from edgecil.data.images import Batch
from edgecil.lessons import sigmoid_terms
from edgecil.losses.attention import attention_distance, class_attention, grad_attention
from edgecil.method import (
    Context,
    Recipe,
    Term,
    Terms,
    needs_head,
    one_phase,
    previous_net,
)
from edgecil.nets.net import Net, Outputs
from edgecil.options import option
from edgecil.settings import SUMMED_TRAINING


@dataclass(frozen=True)
class Options:
    """Options of ``lwm``. The paper gives neither weight; these defaults are our own."""

    beta: float = option(1.0, "weight of the distillation L_D", low=0.0)
    gamma: float = option(0.1, "weight of the attention distillation L_AD", low=0.0)


def attention(net: Net, outputs: Outputs, classes: Tensor, *, trains: bool) -> Tensor:
    """Return the attention maps ``(N, h * w)`` of ``net`` for ``classes`` ``(N,)``.

    In closed form where the head has one, else by autograd through the head. With ``trains``
    they are differentiable with respect to activations and head weights alike.
    """
    closed_form = getattr(net.head, "logit_gradient", None)
    if closed_form is not None:
        return class_attention(outputs.map, closed_form(outputs.features.float(), classes))
    with torch.enable_grad():
        feature_map = outputs.map if trains else outputs.map.detach().requires_grad_()
        logits = net.head(feature_map.mean(dim=(2, 3)))
        scores = logits.float().gather(1, classes[:, None])[:, 0]
        return grad_attention(scores, feature_map, create_graph=trains)


def step(options: Options, ctx: Context, batch: Batch) -> Terms:
    """Return L_C + beta L_D + gamma L_AD on new images (LwM eq. (5)), one forward per network."""
    outputs = ctx.net(batch.images)
    if ctx.previous is None:
        return sigmoid_terms(outputs.logits, batch, ctx, None, "sum")
    teacher = ctx.teach("previous", batch.images)
    terms = sigmoid_terms(outputs.logits, batch, ctx, teacher.logits, "sum")
    # Section 4.1: b is the base class that the *student* scores highest, for both networks.
    best = outputs.logits[:, : ctx.classes.old].argmax(dim=1)
    distance = attention_distance(
        attention(ctx.previous, teacher, best, trains=False).detach(),
        attention(ctx.net, outputs, best, trains=True),
    )
    return {
        **terms,
        "distillation": terms["distillation"]._replace(weight=options.beta),
        "attention": Term(distance, options.gamma),
    }


def recipe(options: Options) -> Recipe:
    """Return the recipe of LwM."""
    return Recipe(
        "lwm",
        phases=one_phase(partial(step, options)),
        head_kind="sigmoid",
        teachers=previous_net,
        adopt=needs_head("sigmoid"),
        training=SUMMED_TRAINING,
    )
