"""How important each weight was for what was learned, from gradients of single images.

EWC and MAS differ in what they measure and how they add it up; the rest of them is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from edgecil.context import Context, Setup, ce_span
from edgecil.data.images import Batch, ImageSet
from edgecil.losses.classification import cross_entropy
from edgecil.memory.fields import Field
from edgecil.method import (
    SOFTMAX_BASE,
    ModuleSpec,
    Origin,
    Phase,
    Recipe,
    Term,
    Terms,
    previous_net,
)
from edgecil.nets.net import Outputs
from edgecil.parts.rows import held_below

SENSITIVITY = Field("sensitivity", "backbone", "how much the outputs depend on every weight")
"""What MAS keeps, and plug-ins over it add to."""
MEMORY = 256 << 20
"""Bytes that the gradients of one group of images may take."""

Score = Callable[[Outputs, Tensor], Tensor]
"""``(outputs of one image, noise) -> scalar`` whose gradient is looked at; noise in [0, 1)."""


def per_image(
    ctx: Context, images: ImageSet, score: Score, fold: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return the mean over images of ``fold(d score / d weight)`` for all backbone parameters.

    Gradients are those of single images in eval mode, so the result does not depend on the
    batch size: the square of a batch's mean gradient, used by several implementations,
    underestimates the mean square about as many times as there are images in a batch.
    """
    net = ctx.net.eval()
    weights = {n: p.detach() for n, p in net.backbone.named_parameters()}
    rest = {f"head.{n}": v.detach() for n, v in net.head.state_dict().items()}
    buffers = {f"backbone.{n}": b for n, b in net.backbone.named_buffers()}

    def of_one(parameters: Mapping[str, Tensor], image: Tensor, noise: Tensor) -> Tensor:
        every = {f"backbone.{n}": p for n, p in parameters.items()} | buffers | rest
        return score(functional_call(net, every, (image[None],)), noise)

    gradients = vmap(grad(of_one), in_dims=(None, 0, 0))
    size = sum(w.nbytes for w in weights.values())
    chunk = max(1, MEMORY // max(1, size))
    total = {n: torch.zeros_like(w, dtype=torch.float32) for n, w in weights.items()}
    generator = ctx.stream("importance")
    for batch in ctx.loader(images):
        noise = torch.rand(len(batch), generator=generator).to(batch.device)
        for start in range(0, len(batch), chunk):
            part, draws = batch[start : start + chunk], noise[start : start + chunk]
            for name, value in gradients(weights, part, draws).items():
                total[name] += fold(value).sum(dim=0)
    return {name: value / len(images) for name, value in total.items()}


def fisher(ctx: Context, images: ImageSet) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information of the backbone (EWC).

    E_x E_{y ~ p} (d log p_y / d theta)^2 over the seen classes, with one draw of y per image.
    """
    seen = ctx.classes.seen

    def log_likelihood(outputs: Outputs, noise: Tensor) -> Tensor:
        logs = torch.log_softmax(outputs.logits[0, :seen].float(), dim=0)
        drawn = (logs.detach().exp().cumsum(0) < noise).sum().clamp_max(seen - 1)
        return logs.gather(0, drawn[None])[0]

    return per_image(ctx, images, log_likelihood, torch.square)


def sensitivity(
    ctx: Context, images: ImageSet, answer: Callable[[Outputs], Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the mean of |d ||f(x)||^2 / d theta| over the images (MAS).

    f is ``answer``, by default the logits of the seen classes.
    """
    seen = ctx.classes.seen

    def length(outputs: Outputs, noise: Tensor) -> Tensor:
        found = outputs.logits[:, :seen] if answer is None else answer(outputs)
        return found.float().square().sum()

    return per_image(ctx, images, length, torch.abs)


def penalty(
    net: nn.Module, anchor: nn.Module, importance: Mapping[str, Tensor], most: float = math.inf
) -> Tensor:
    """Return sum_i importance_i (theta_i - theta*_i)^2 over the backbone; a scalar.

    No importance counts for more than ``most``.
    """
    before = dict(anchor.named_parameters())
    terms = [
        (importance[name].clamp(max=most) * (value - before[name]).square()).sum()
        for name, value in net.named_parameters()
        if name in importance
    ]
    return torch.stack(terms).sum()


class Importance(nn.Module):
    """The kept importance of every backbone parameter, on the device while an increment trains."""

    def __init__(self, importance: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {name: name.replace(".", "/") for name in importance}
        for name, value in importance.items():
            self.register_buffer(self._names[name], value)

    @property
    def by_name(self) -> dict[str, Tensor]:
        """Importance by the name of the parameter in the network."""
        return {name: self.get_buffer(stored) for name, stored in self._names.items()}


IMPORTANCE = "importance"


def _importance(field: Field, ctx: Context) -> Importance:
    kept = ctx.kept.read(field.name) if field.name in ctx.kept else {}
    return Importance({name: torch.from_numpy(value) for name, value in kept.items()})


CLAMP_HELP = "clamp importance at 1 / (2 lambda lr): SGD then converges at any strength"
_IF_DIVERGING = "a smaller --set strength=X, --set clamp=true, or a smaller --lr"


def importance_limit(strength: float, lr: float) -> float:
    """Return the importance beyond which SGD at the rate ``lr`` cannot follow the penalty.

    Alone, s F d^2 is descended with momentum m while lr 2 s F < 2 (1 + m), and diverges from
    there on. At lr 2 s F = 1 one step ends at the anchor, and room is left for the curvature of
    the cross-entropy.
    """
    return 1 / (2 * strength * lr) if strength * lr > 0 else math.inf


def penalised_step(
    strength: float, ce_scope: str, clamp: bool, ctx: Context, batch: Batch
) -> Terms:
    """Return the cross-entropy on new images and the penalty for leaving the old weights.

    The penalty weighs by the kept importance, and is anchored at the network learned before.
    """
    logits = ctx.net(batch.images).logits
    span = ce_span(ctx, ce_scope)
    terms = {"classification": Term(cross_entropy(logits, batch.labels, span))}
    if ctx.classes.old:
        importance = ctx.modules[IMPORTANCE]
        assert isinstance(importance, Importance)
        most = importance_limit(strength, ctx.setup.training.optim.lr) if clamp else math.inf
        value = penalty(ctx.net, ctx.teachers["previous"], importance.by_name, most)
        terms["penalty"] = Term(value, strength, to=("backbone",))
    return terms


def keep(
    ctx: Context, field: Field, measured: Mapping[str, Tensor], old_share: float, new_share: float
) -> None:
    """Keep ``old_share`` times what was kept plus ``new_share`` times what was measured."""
    total = {f"backbone.{n}": new_share * v.cpu().numpy() for n, v in measured.items()}
    if field.name in ctx.kept:
        for name, value in ctx.kept.read(field.name).items():
            total[name] = total[name] + old_share * value
    ctx.keeps.write(field.name, {n: v.astype(np.float32) for n, v in total.items()})


def add(ctx: Context, field: Field, measured: Mapping[str, Tensor], share: float) -> None:
    """Keep ``share`` times what was measured beside what this increment keeps already."""
    total = ctx.keeps.read(field.name)
    for name, value in measured.items():
        total[f"backbone.{name}"] += np.float32(share) * value.cpu().numpy()
    ctx.keeps.write(field.name, total)


def penalised_recipe(
    name: str,
    field: Field,
    remember: Callable[[Context], None],
    strength: float,
    ce_scope: str,
    clamp: bool,
) -> Recipe:
    """Return a method that penalises changes of the backbone by what ``field`` holds of it.

    ``remember`` keeps the field. Rows of old classes that the cross-entropy leaves out are held:
    no loss reaches them, and the weight decay would wear them away.
    """
    step = partial(penalised_step, strength, ce_scope, clamp)

    def old_rows(ctx: Context) -> Mapping[str, Tensor]:
        return held_below(ctx, ce_span(ctx, ce_scope).start)

    def phases(setup: Setup) -> tuple[Phase, ...]:
        return (Phase("train", step, setup.training, masks=old_rows),)

    def adopt(origin: Origin) -> str | None:
        if field.name in origin.kept_fields:
            return None
        return f"nothing is kept of {field.why}"

    return Recipe(
        name,
        phases=phases,
        fields=(field,),
        modules=(ModuleSpec(IMPORTANCE, partial(_importance, field)),),
        teachers=previous_net,
        end=remember,
        adopt=adopt,
        if_diverging=_IF_DIVERGING,
        base=SOFTMAX_BASE,
    )
