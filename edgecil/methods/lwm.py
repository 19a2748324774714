"""Learning without memorizing: distils what the network looks at, not only what it says.

LwF-MC's loss plus attention distillation (LwM section 4): for every new image, the Grad-CAM
map of the student's best *old* class must point where the previous network's map for the same
class points. Kept between increments: nothing.

A model with softmax outputs, such as one trained elsewhere, is continued with LwF's cross-entropy
and softened distillation in place of the sigmoid ones, and the same attention term.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from edgecil.context import Context, ce_span
from edgecil.data.images import Batch
from edgecil.losses.attention import attention, attention_distance
from edgecil.losses.classification import cross_entropy
from edgecil.losses.distillation import softmax_distillation
from edgecil.method import Recipe, Term, Terms, needs_head, one_phase, previous_net
from edgecil.options import option
from edgecil.parts.lessons import sigmoid_base, sigmoid_terms

OutputsTerms = Callable[[Context, Batch, Tensor, Tensor | None], Terms]
"""``(ctx, batch, logits, taught) -> terms``: what is asked of the logits."""
TEMPERATURE = 2.0
"""Of softmax outputs: LwF's, which LwM knows nothing of."""

PAPER = "Dhar, Singh, Peng, Wu and Chellappa: Learning without Memorizing, CVPR 2019"


@dataclass(frozen=True)
class Options:
    """Options of ``lwm``. The paper gives neither weight; these defaults are our own."""

    beta: float = option(1.0, "weight of the distillation L_D", low=0.0)
    gamma: float = option(0.1, "weight of the attention distillation L_AD", low=0.0)


def sigmoid_outputs(ctx: Context, batch: Batch, logits: Tensor, taught: Tensor | None) -> Terms:
    """Return L_C and L_D of one sigmoid per class, as LwF-MC has them."""
    return sigmoid_terms(logits, batch, ctx, taught, "sum")


def softmax_outputs(ctx: Context, batch: Batch, logits: Tensor, taught: Tensor | None) -> Terms:
    """Return L_C over the new units and L_D over the old ones, as LwF has them."""
    terms = {"classification": Term(cross_entropy(logits, batch.labels, ce_span(ctx, "new")))}
    if taught is not None:
        old = ctx.classes.old
        distilled = softmax_distillation(taught[:, :old], logits[:, :old], TEMPERATURE)
        terms["distillation"] = Term(distilled)
    return terms


def step(options: Options, outputs_terms: OutputsTerms, ctx: Context, batch: Batch) -> Terms:
    """Return L_C + beta L_D + gamma L_AD on new images (LwM eq. (5)), one forward per network."""
    outputs = ctx.net(batch.images)
    if ctx.previous is None:
        return outputs_terms(ctx, batch, outputs.logits, None)
    teacher = ctx.teach("previous", batch.images)
    terms = outputs_terms(ctx, batch, outputs.logits, teacher.logits)
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


def tell(ctx: Context) -> None:
    """Say which distillation takes the place of LwM's."""
    ctx.note("softmax outputs: lwm distils them as lwf does, beside the attention maps")


def on_softmax(options: Options) -> Recipe:
    """Return the recipe that continues a model with softmax outputs."""
    return Recipe(
        "lwm",
        phases=one_phase(partial(step, options, softmax_outputs)),
        teachers=previous_net,
        temperature=TEMPERATURE,
        begin=tell,
        adopt=needs_head("softmax"),
        updates_known=True,
    )


def recipe(options: Options) -> Recipe:
    """Return the recipe of LwM."""
    return Recipe(
        "lwm",
        phases=one_phase(partial(step, options, sigmoid_outputs)),
        head_kind="sigmoid",
        forms={"softmax": on_softmax(options)},
        teachers=previous_net,
        adopt=needs_head("sigmoid"),
        base=sigmoid_base("sum"),
        updates_known=True,
    )
