"""ABD as its equations are read off, with every pass that they suggest: what savings are against.

A solver whose weights collect gradients that nobody uses, statistics of every pass of it, a pass
of its own for labels, one for scores that no loss takes, and a second pass of the student for
features without gradient.
"""

from __future__ import annotations

import copy

import torch
from torch.nn import functional as F

from edgecil.method import Term
from edgecil.parts.dreaming import draw, source_of
from edgecil.synthesis.statistics import batch_statistics
from edgecil.synthesis.training import dream


def solver_of(ctx):
    """Return the teacher with weights that want gradients."""
    return copy.deepcopy(ctx.teachers["previous"]).requires_grad_(True)


def naive_dream(objective, solver, ctx, batch):
    """Return the terms of a step of synthesis."""
    count = ctx.setup.training.batch_size
    losses = dream(source_of(ctx), solver, objective, ctx.classes.old, count, ctx.step)
    return {name: Term(loss.value, loss.weight) for name, loss in losses.items()}


def naive_step(options, solver, ctx, batch):
    """Return the terms of a step of training, in the paper's form (eq. (15))."""
    n, old, seen = len(batch.labels), ctx.classes.old, ctx.classes.seen
    dreamed = draw(ctx, n)
    with batch_statistics(solver), torch.no_grad():
        labels = solver(dreamed).logits[:, :old].argmax(dim=1)
        solver(batch.images)  # scores that nobody uses
        x, y = torch.cat([batch.images, dreamed]), torch.cat([batch.labels, labels])
        features = solver(x).features
    outputs = ctx.net(x)
    local = F.cross_entropy(outputs.logits[:n, old:seen].float(), batch.labels - old)
    weight = solver.head.weight[:old].detach()
    distance = (outputs.features @ weight.T - features @ weight.T).square().mean()
    with torch.no_grad():
        again = ctx.net(x).features
    logits = F.linear(again, ctx.net.head.weight, ctx.net.head.bias)[:, :seen]
    share = torch.where(y < old, old / seen, (seen - old) / seen)
    tuned = (F.cross_entropy(logits, y, reduction="none") * share).mean()
    return {
        "classification": Term(local),
        "distillation": Term(distance, options.mu),
        "fine-tuning": Term(tuned, options.finetuning),
    }
