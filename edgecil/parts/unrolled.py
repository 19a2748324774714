"""Training a temporary model on few images, and the gradient through it into their pixels.

The base-level problem of Mnemonics (Liu et al. 2020, eq. (8)): plain gradient descent from given
weights. Its result is a function of the images; reverse mode through all steps gives the gradient
of whatever is computed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgecil.errors import UsageError

Weights = Mapping[str, Tensor]
Loss = Callable[[Weights, Tensor, int], Tensor]
"""``(weights, images, step) -> scalar``: the inner loss of a step, numbered from 0."""


ONCE = (nn.Hardswish, nn.Hardsigmoid)
"""Layers whose gradient torch cannot differentiate again."""


def check_twice_differentiable(net: nn.Module) -> None:
    """Do nothing for a network that inner training can be differentiated through.

    Raises:
        UsageError: it has layers whose gradient has no derivative.
    """
    found = sorted({type(m).__name__ for m in net.modules() if isinstance(m, ONCE)})
    if found:
        raise UsageError(
            f"unrolled mnemonics differentiate twice, which {' and '.join(found)} cannot be",
            hint="--set mode=prototype trains nothing inside; or --arch resnet32",
        )


@dataclass(frozen=True)
class Descent:
    """Gradient descent of so many ``steps`` at the rate ``lr`` (alpha_2 of eq. (8))."""

    loss: Loss
    steps: int
    lr: float


def unrolled(descent: Descent, weights: Weights, images: Tensor) -> dict[str, Tensor]:
    """Return the trained weights by name; the graph of all steps is held at once.

    Memory grows with steps times activations: the plain form, which :func:`checkpointed` equals.
    """
    names = list(weights)
    values = _leaves([weights[name] for name in names])
    for step in range(descent.steps):
        loss = descent.loss(dict(zip(names, values, strict=True)), images, step)
        slopes = torch.autograd.grad(loss, values, create_graph=True)
        values = [v - descent.lr * slope for v, slope in zip(values, slopes, strict=True)]
    return dict(zip(names, values, strict=True))


def checkpointed(descent: Descent, weights: Weights, images: Tensor) -> dict[str, Tensor]:
    """Return the same weights with the same gradient, holding the graph of one step at a time.

    Between forward and backward only the weights after every step are kept: ``steps`` times
    the bytes of ``weights``. Every step is computed once more on the way back.
    """
    names = list(weights)
    start = [weights[name].detach() for name in names]
    trained = _Descend.apply(descent, names, images, *start)
    return dict(zip(names, trained, strict=True))


def _leaves(values: list[Tensor]) -> list[Tensor]:
    return [value.detach().requires_grad_() for value in values]


class _Descend(torch.autograd.Function):
    """Gradient descent as one node of the graph, differentiable in the images."""

    @staticmethod
    def forward(
        ctx: Any, descent: Descent, names: list[str], images: Tensor, *start: Tensor
    ) -> tuple[Tensor, ...]:
        states = [list(start)]
        fixed = images.detach()
        for step in range(descent.steps):
            values = _leaves(states[-1])
            with torch.enable_grad():
                loss = descent.loss(dict(zip(names, values, strict=True)), fixed, step)
                slopes = torch.autograd.grad(loss, values)
            pairs = zip(values, slopes, strict=True)
            states.append([v.detach() - descent.lr * slope for v, slope in pairs])
        ctx.descent, ctx.names, ctx.states = descent, names, states
        ctx.save_for_backward(images)
        # Without a step the weights would leave as they came: a node must not return its input.
        return tuple(v.clone() for v in states.pop())

    @staticmethod
    def backward(ctx: Any, *adjoint: Tensor) -> tuple[Tensor | None, ...]:
        """Carry the adjoint a of the weights back through w' = w - lr g(w, x), step by step.

        a <- a - lr (dg/dw)^T a, and the images receive -lr (dg/dx)^T a.
        """
        (images,) = ctx.saved_tensors
        descent, total = ctx.descent, torch.zeros_like(images)
        carried = list(adjoint)
        for step in reversed(range(descent.steps)):
            values, fresh = _leaves(ctx.states[step]), images.detach().requires_grad_()
            with torch.enable_grad():
                loss = descent.loss(dict(zip(ctx.names, values, strict=True)), fresh, step)
                slopes = torch.autograd.grad(loss, values, create_graph=True)
                product = torch.stack(
                    [(s * a).sum() for s, a in zip(slopes, carried, strict=True)]
                ).sum()
                back = torch.autograd.grad(product, [*values, fresh], materialize_grads=True)
            total -= descent.lr * back[-1]
            carried = [a - descent.lr * b for a, b in zip(carried, back, strict=False)]
        return None, None, total, *(None for _ in carried)
