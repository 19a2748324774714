"""Learning without memorizing: distils what the network looks at, not only what it says.

LwF-MC's loss plus attention distillation (LwM section 4): for every new image, the Grad-CAM
map of the student's best *old* class must point where the previous network's map for the same
class points. Kept between increments: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from edgecil.data.images import Batch
from edgecil.lessons import sigmoid_base, sigmoid_terms
from edgecil.losses.attention import attention, attention_distance
from edgecil.method import (
    Context,
    Recipe,
    Term,
    Terms,
    needs_head,
    one_phase,
    previous_net,
)
from edgecil.options import option


@dataclass(frozen=True)
class Options:
    """Options of ``lwm``. The paper gives neither weight; these defaults are our own."""

    beta: float = option(1.0, "weight of the distillation L_D", low=0.0)
    gamma: float = option(0.1, "weight of the attention distillation L_AD", low=0.0)


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
        base=sigmoid_base("sum"),
        updates_known=True,
    )
