"""The two numbers of BiC: logits of new classes become alpha z + beta (Wu et al. 2019, eq. (4))."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

BETA_DECAY = 0.1
"""Weight of beta^2 / 2 in the published code."""
MILESTONES = (0.3, 0.6, 0.8, 0.9)
"""Where the published code divides the rate by 10: after 60, 120, 160 and 180 of 200 epochs."""


def corrected(logits: Tensor, new: slice, pair: Tensor) -> Tensor:
    """Return logits ``(N, K)`` with the columns ``new`` scaled by alpha and shifted by beta."""
    scale, shift = torch.ones_like(logits[0]), torch.zeros_like(logits[0])
    columns = torch.zeros_like(scale, dtype=torch.bool)
    columns[new] = True
    return logits * torch.where(columns, pair[0], scale) + torch.where(columns, pair[1], shift)


def objective(logits: Tensor, labels: Tensor, new: slice, pair: Tensor, ridge: float) -> Tensor:
    """Return the cross-entropy of corrected logits plus what holds the pair near (1, 0).

    Cross-entropy alone may have no minimum: separable images want an infinite alpha.
    """
    loss = F.cross_entropy(corrected(logits, new, pair), labels)
    return loss + BETA_DECAY / 2 * pair[1] ** 2 + ridge / 2 * (pair[0] - 1) ** 2


def fit_exactly(
    logits: Tensor, labels: Tensor, new: slice, ridge: float = 1e-3, tolerance: float = 1e-12
) -> Tensor:
    """Return (alpha, beta) at the minimum of :func:`objective`, as float64.

    The problem is convex in two unknowns: Newton's method with halved steps. With the vector
    u_c = (z_c, 1) of every new class c and 0 of the old ones, the gradient of the
    cross-entropy is the mean of E_p[u] - u_y and its Hessian that of the covariance of u.
    """
    values, targets = logits.detach().double().cpu(), labels.cpu()
    directions = torch.zeros(*values.shape, 2, dtype=torch.float64)
    directions[:, new, 0] = values[:, new]
    directions[:, new, 1] = 1
    decay = torch.tensor([ridge, BETA_DECAY], dtype=torch.float64)
    start = torch.tensor([1.0, 0.0], dtype=torch.float64)

    def cost(pair: Tensor) -> Tensor:
        return objective(values, targets, new, pair, ridge)

    pair = start
    for _ in range(100):
        shares = torch.softmax(corrected(values, new, pair), dim=1)[:, :, None]
        mean = (shares * directions).sum(dim=1)
        own = directions[torch.arange(len(targets)), targets]
        gradient = (mean - own).mean(dim=0) + decay * (pair - start)
        if float(gradient.abs().max()) < tolerance:
            break
        apart = directions - mean[:, None, :]
        covariance = torch.einsum("nci,ncj->ij", shares * apart, apart) / len(targets)
        step = torch.linalg.solve(covariance + torch.diag(decay), gradient)
        while cost(pair - step) > cost(pair) and float(step.abs().max()) > tolerance:
            step = step / 2
        pair = pair - step
    return pair


def fit_by_descent(
    logits: Tensor,
    labels: Tensor,
    new: slice,
    *,
    lr: float = 0.1,
    epochs: int = 200,
    batch_size: int = 256,
    milestones: Sequence[float] = MILESTONES,
) -> Tensor:
    """Return (alpha, beta) after the published stage 2, as float64: SGD from (1, 0).

    Momentum is 0.9; ``lr`` is divided by 10 at each of ``milestones``, fractions of all epochs.
    As in the published code batches are cut from the images in order of class, again and again:
    a batch may hold the end of an epoch and the beginning of the next.
    """
    order = labels.cpu().argsort(stable=True)
    values, targets = logits.detach().double().cpu()[order], labels.cpu()[order]
    rows = torch.arange(epochs * len(targets)) % len(targets)
    pair = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([pair], lr=lr, momentum=0.9)
    for start in range(0, len(rows), batch_size):
        batch, progress = rows[start : start + batch_size], start / len(rows)
        optimiser.param_groups[0]["lr"] = lr * 0.1 ** sum(progress >= m - 1e-9 for m in milestones)
        optimiser.zero_grad()
        cost = objective(values[batch], targets[batch], new, pair, ridge=0.0)
        cost.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return pair.detach()
