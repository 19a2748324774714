"""The two numbers of BiC: logits of new classes become alpha z + beta (Wu et al. 2019, eq. (4))."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BETA_DECAY = 0.1
"""Weight of beta^2 / 2 in the published code."""


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
    logits: Tensor, labels: Tensor, new: slice, steps: int = 200, lr: float = 0.001
) -> Tensor:
    """Return (alpha, beta) after so many steps of Adam from (1, 0), as the published stage 2.

    It stops long before the minimum; the pair stays near (1, 0).
    """
    values = logits.detach().double().cpu()
    pair = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([pair], lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        objective(values, labels.cpu(), new, pair, ridge=0.0).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return pair.detach()
